"""The layout of the page and its event handlers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from .viewer import Answer, Viewer

LOOPS = 3
_OPACITY = 0.55
_KEPT = 3600  # seconds for which uploads, and the files made from them, are kept

CSS = """
.gradio-container { width: 100% !important; max-width: 1500px !important; margin: 0 auto !important; }
.overlay .image-frame { width: 100% !important; }
.overlay img { width: 100% !important; height: auto !important; max-height: 80vh; object-fit: contain !important;
               cursor: crosshair; }
.legend { list-style: none; margin: 0; padding: 0; display: grid; gap: 2px 24px; max-height: 340px; overflow-y: auto;
          grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }
.legend li { display: flex; align-items: center; gap: 8px; margin: 0; }
.legend .swatch { width: 16px; height: 16px; border-radius: 3px; border: 1px solid rgba(128, 128, 128, 0.6); }
.legend .name { flex: 0 0 92px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.legend .bar { flex: 1; height: 6px; border-radius: 3px; background: rgba(128, 128, 128, 0.2); overflow: hidden; }
.legend .bar span { display: block; height: 100%; background: rgb(68, 100, 173); }
.legend .share { flex: 0 0 52px; text-align: right; font-variant-numeric: tabular-nums; }
"""

_INTRODUCTION = """# Semantic segmentation with CCNet
Drop, paste or choose an image. Then click a point in the overlay to see what that point attends to.
"""
_EXAMPLES = "Generated examples (networks trained on photos misread parts of them)"
_HINT = "Click a point in an overlay above to see what it attends to after R = 1, 2 and 3 passes."
_NO_ATTENTION = "Attention is only shown for networks with one criss-cross module, such as ccnet."


def build_page(viewer: Viewer, examples: Sequence[Path], folder: Path) -> gr.Blocks:
    """Return the page.

    Args:
        viewer: the networks.
        examples: the example images that the page offers.
        folder: the folder to which downloadable files are written.
    """
    with gr.Blocks(title="CCNet", analytics_enabled=False, delete_cache=(600, _KEPT)) as page:
        gr.Markdown(_INTRODUCTION)
        answer_state = gr.State(None, time_to_live=_KEPT)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                photo = gr.Image(
                    label="Image",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    buttons=[],
                    elem_id="photo",
                    height=260,
                )
                gr.Examples([[str(path)] for path in examples], inputs=[photo], label=_EXAMPLES)
                opacity = gr.Slider(0, 1, value=_OPACITY, step=0.05, label="Opacity of the classes", elem_id="opacity")
            panels = [_Panel(title, index) for index, title in enumerate(viewer.titles)]
        gr.Markdown("## Attention")
        hint = gr.Markdown(_HINT, elem_id="hint")
        rows = [_AttentionRow(title, index) for index, title in enumerate(viewer.titles)]
        outputs = [part for panel in panels for part in panel.outputs]
        attention = [part for row in rows for part in row.outputs]

        def segment(upload: dict[str, Any] | None, shown: float, request: gr.Request) -> list[Any]:
            """Segment the upload; return the answer and the updates of all panels and attention rows."""
            answer = None if upload is None else _answer(viewer, upload["path"])
            files = folder / str(request.session_hash)
            updates = [
                update for index in range(len(panels)) for update in _panel_updates(viewer, answer, index, shown, files)
            ]
            return [answer, *updates, gr.update(visible=True), *(gr.update(visible=False) for _ in attention)]

        def blend(answer: Answer | None, shown: float) -> list[Any]:
            """Return the overlays with the chosen opacity."""
            return [None if answer is None else viewer.overlay(answer, index, shown) for index in range(len(panels))]

        def attend(answer: Answer | None, event: gr.SelectData) -> list[Any]:
            """Return the updates that show the attention of the clicked point."""
            if answer is None:
                return [gr.update(), *(gr.update() for _ in attention)]
            point = viewer.point_of(answer, event.index)
            shown = [row.drawn(viewer.attention(answer, row.index, point)) for row in rows]
            return [gr.update(visible=False), *(value for row in shown for value in row)]

        # One image at a time: attention is read with hooks on the networks, which must not run concurrently.
        alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "network", "api_visibility": "private"}
        # With preprocess=True, Gradio would open the file before this project's own checks.
        photo.change(segment, [photo, opacity], [answer_state, *outputs, hint, *attention], preprocess=False, **alone)
        opacity.release(blend, [answer_state, opacity], [panel.overlay for panel in panels], **alone)
        for panel in panels:
            panel.overlay.select(attend, [answer_state], [hint, *attention], **alone)
    return page


class _Panel:
    """The overlay of one network, with its legend and downloads."""

    def __init__(self, title: str, index: int):
        with gr.Column(scale=3, min_width=320):
            self.overlay = gr.Image(
                label=title, interactive=False, buttons=["fullscreen"], format="png", elem_id=f"overlay-{index}",
                elem_classes="overlay",
            )  # fmt: skip
            self.legend = gr.HTML(elem_id=f"legend-{index}")
            with gr.Row():
                self.mask = gr.DownloadButton("Download mask", size="sm", interactive=False, elem_id=f"mask-{index}")
                self.file = gr.DownloadButton("Download overlay", size="sm", interactive=False, elem_id=f"file-{index}")
        self.outputs = [self.overlay, self.legend, self.mask, self.file]


class _AttentionRow:
    """The attention maps of one network for R = 1, 2, 3."""

    def __init__(self, title: str, index: int):
        self.index = index
        self.title = gr.Markdown(f"### {title}", visible=False)
        ids = [f"attention-{index}-{loop}" for loop in range(1, LOOPS + 1)]
        with gr.Row():
            self.maps = [
                gr.Image(visible=False, interactive=False, buttons=[], format="png", elem_id=name, min_width=260)
                for name in ids
            ]
        self.outputs = [self.title, *self.maps]

    def drawn(self, maps: Sequence[Any]) -> list[Any]:
        """Return the updates that show the maps, or a note if there are none."""
        if not maps:
            return [gr.update(value=_NO_ATTENTION, visible=True), *(gr.update(visible=False) for _ in self.maps)]
        return [
            gr.update(visible=True),
            *(gr.update(value=attention.image, label=attention.title, visible=True) for attention in maps),
        ]


def _answer(viewer: Viewer, path: str) -> Answer | None:
    """Segment an uploaded file; if that fails, show the reason on the page and return None."""
    try:
        return viewer.answer(Path(path))
    except (ValueError, MemoryError, RuntimeError) as error:
        gr.Warning(str(error) or type(error).__name__, title="The image cannot be segmented", duration=None)
        return None


def _panel_updates(viewer: Viewer, answer: Answer | None, index: int, opacity: float, folder: Path) -> list[Any]:
    """Return the updates of one panel (overlay, legend, mask, overlay file); without an answer, clear it."""
    if answer is None:
        return [None, "", gr.update(value=None, interactive=False), gr.update(value=None, interactive=False)]
    files = [gr.update(value=path, interactive=True) for path in viewer.files(answer, index, folder)]
    return [viewer.overlay(answer, index, opacity), viewer.legend(answer, index), *files]
