"""Pictures with classes drawn in: masks, overlays, panels of predictions, where a point attends.

Figures are built without pyplot: nothing global is left behind in the process of a sweep.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...data import IGNORE_INDEX
from ..runtime.atomic_files import replacing

_VOID = (0, 0, 0)
_OPACITY = 0.55  # of a class's colour over the picture
_LEGEND_COLUMNS = 6
_RIGHT, _WRONG = (225, 228, 232), (214, 39, 40)


def colourise(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Class indices (H, W) -> RGB uint8 (H, W, 3); ignored pixels are black."""
    table = np.full((256, 3), _VOID, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def blend(image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """RGB uint8 (H, W, 3) with its classes (H, W) drawn over it; ignored pixels are darkened."""
    return ((1 - _OPACITY) * image + _OPACITY * colourise(labels, palette)).round().astype(np.uint8)


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a whole picture, or leave the one that was there."""
    with replacing(path) as unfinished:
        picture.save(unfinished, format="PNG")


def write_figure(path: Path, figure: Figure, *, dpi: int = 120, bbox_inches: str | None = None) -> None:
    """Write a whole figure, or leave the one that was there."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=dpi, bbox_inches=bbox_inches)


def save_mask(path: Path, labels: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write class indices (H, W) as a PNG whose pixel values are the indices, shown in the palette."""
    picture = Image.fromarray(labels.astype(np.uint8))
    flat = [channel for colour in palette for channel in colour]
    picture.putpalette(flat + [0] * (768 - len(flat)))
    write_png(path, picture)


def save_overlay(
    path: Path, image: np.ndarray, labels: np.ndarray, classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> None:
    """Write a picture with its classes drawn over it, and beside it a legend with each class's share.

    Args:
        image: RGB uint8 (H, W, 3).
        labels: class indices (H, W).
        classes, palette: of the data set.
    """
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    present = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    lines = [f"{classes[index]}  {100 * counts[index] / labels.size:.1f}%" for index in present]

    line = max(14, min(28, image.shape[0] // 20))
    font = ImageFont.load_default(size=round(0.72 * line))
    width = round(max(font.getlength(text) for text in lines)) + 3 * line
    height = max(image.shape[0], (len(lines) + 1) * line)
    canvas = Image.new("RGB", (image.shape[1] + width, height), "white")
    canvas.paste(Image.fromarray(blend(image, labels, palette)))
    draw = ImageDraw.Draw(canvas)
    for row, (index, text) in enumerate(zip(present, lines, strict=True)):
        left, top = image.shape[1] + line // 2, line // 2 + row * line
        box = (left, top + line // 6, left + line, top + line * 5 // 6)
        draw.rectangle(box, fill=tuple(palette[index]), outline="black")
        draw.text((left + 1.5 * line, top + line // 2), text, fill="black", font=font, anchor="lm")
    write_png(path, canvas)


def save_panel(
    path: Path,
    samples: Sequence[tuple[Tensor, Tensor, Tensor]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> None:
    """Write rows of picture, truth, prediction and errors.

    Args:
        samples: (image (3, H, W) in [0, 1], labels (H, W), prediction (H, W)).
        classes, palette: of the data set.
    """
    rows = [(image, labels.numpy(), prediction.numpy()) for image, labels, prediction in samples]
    seen = {index for _, *maps in rows for part in maps for index in np.unique(part).tolist()} - {IGNORE_INDEX}
    pictures = [
        (
            image.permute(1, 2, 0).numpy(),
            colourise(labels, palette),
            colourise(prediction, palette),
            mark_errors(prediction, labels),
        )
        for image, labels, prediction in rows
    ]
    _save_grid(path, pictures, ("image", "truth", "prediction", "errors (red)"), sorted(seen), classes, palette)


def mark_errors(prediction: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Class indices (H, W) twice -> RGB uint8 (H, W, 3): wrong pixels red, right ones grey, ignored ones black."""
    errors = np.where((labels == prediction)[..., None], np.uint8(_RIGHT), np.uint8(_WRONG))
    errors[labels == IGNORE_INDEX] = _VOID
    return errors


def _save_grid(
    path: Path,
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    shown: Sequence[int],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> None:
    """Rows of pictures under column titles, over a legend of the classes ``shown``."""
    ratios = [max(picture.shape[0] / picture.shape[1] for picture in row) for row in rows]
    legend_height = 0.3 + 0.18 * -(-len(shown) // _LEGEND_COLUMNS)
    width, height = 10, 0.3 + 10 / len(titles) * sum(ratios) + legend_height
    figure = Figure(figsize=(width, height))
    # Margins by hand: a constrained layout draws everything twice.
    margins = {"left": 0.005, "right": 0.995, "top": 1 - 0.3 / height, "bottom": legend_height / height}
    grid = {"height_ratios": ratios, "wspace": 0.03, "hspace": 0.06} | margins
    axes = figure.subplots(len(rows), len(titles), squeeze=False, gridspec_kw=grid)
    for line, row in zip(axes, rows, strict=True):
        for axis, picture in zip(line, row, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    if shown:
        figure.legend(
            [_patch(palette[index]) for index in shown],
            [classes[index] for index in shown],
            loc="lower center",
            ncols=min(len(shown), _LEGEND_COLUMNS),
            fontsize=8,
            frameon=False,
        )
    write_figure(path, figure)


def save_samples(
    path: Path,
    rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray | None]]],
    titles: Sequence[str],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> None:
    """Write rows of pictures, some with labels drawn over them.

    Args:
        rows: (RGB uint8 (H, W, 3), labels (H, W) or None) for each column.
        titles: of the columns.
        classes, palette: of the data set.
    """
    seen = {index for row in rows for _, labels in row if labels is not None for index in np.unique(labels).tolist()}
    shown = sorted(seen - {IGNORE_INDEX})
    pictures = [[image if labels is None else blend(image, labels, palette) for image, labels in row] for row in rows]
    _save_grid(path, pictures, titles, shown, classes, palette)


def save_side_by_side(
    path: Path,
    rows: Sequence[tuple[np.ndarray, np.ndarray | None, Sequence[np.ndarray]]],
    names: Sequence[str],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> None:
    """Write rows of a picture, its truth, and the predictions of several networks, each beside its errors.

    Args:
        rows: (RGB uint8 (H, W, 3), labels (H, W) or None, a prediction (H, W) per network).
        names: of the networks.
        classes, palette: of the data set.
    """
    titles = ["image", *([] if rows[0][1] is None else ["truth"])]
    for name in _shortened(names):
        titles += [name] if rows[0][1] is None else [name, "errors (red)"]
    lines, seen = [], set()
    for image, truth, predictions in rows:
        line = [image] if truth is None else [image, colourise(truth, palette)]
        for prediction in predictions:
            line.append(colourise(prediction, palette))
            if truth is not None:
                line.append(mark_errors(prediction, truth))
        lines.append(line)
        seen |= {
            index for labels in (truth, *predictions) if labels is not None for index in np.unique(labels).tolist()
        }
    _save_grid(path, lines, titles, sorted(seen - {IGNORE_INDEX}), classes, palette)


def _shortened(names: Sequence[str]) -> list[str]:
    """Names without the folders that all of them start or end with."""
    parts = [Path(name.removesuffix(".safetensors")).parts for name in names]
    if len(parts) > 1:
        while min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
            parts = [part[1:] for part in parts]
        while min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
            parts = [part[:-1] for part in parts]
    return ["/".join(part) for part in parts]


def save_attention(path: Path, image: np.ndarray, maps: Sequence[np.ndarray], point: Sequence[int]) -> None:
    """Write where a point attends after each loop, over the picture (the paper's Fig. 7).

    Args:
        image: RGB uint8 (H, W, 3).
        maps: weights (h, w) for R = 1, 2, ...
        point: (y, x), pixels.
    """
    height, width = image.shape[:2]
    columns = len(maps) + 1
    figure = Figure(figsize=(3.4 * columns, 0.7 + 3.4 * height / width), layout="constrained")
    axes = figure.subplots(1, columns)
    grey = image.mean(axis=2)
    for loop, (axis, weights) in enumerate(zip(axes[1:], maps, strict=True), 1):
        axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
        # Logarithmic, over three decades: one strong position would hide all the others.
        levels = np.log10(np.maximum(weights / weights.max(), 1e-3)) / 3 + 1
        heat = Image.fromarray((255 * levels).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        shares = np.asarray(heat) / 255
        shown = axis.imshow(shares, cmap="inferno", alpha=0.85 * np.sqrt(shares), vmin=0, vmax=1)
        axis.set_title(f"R = {loop}: {100 * (weights > 0).mean():.0f}% of the positions", fontsize=10)
    axes[0].imshow(image)
    axes[0].set_title("image and point", fontsize=10)
    for axis in axes:
        axis.plot(point[1], point[0], "+", color="#00e676", markersize=11, markeredgewidth=2)
        axis.set_axis_off()
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, ticks=[0, 1 / 3, 2 / 3, 1])
    bar.ax.set_yticklabels(["0.001 or less", "0.01", "0.1", "1"], fontsize=8)
    bar.set_label("attention, share of the largest", fontsize=8)
    write_figure(path, figure, bbox_inches="tight")


def _patch(colour: Sequence[int]):
    return Patch(facecolor=[channel / 255 for channel in colour], edgecolor="black", linewidth=0.5)
