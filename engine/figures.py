"""Pictures of a run: curves, panels of predictions, overlays, the comparison of a sweep.

Figures are built without pyplot: nothing global is left behind in the process of a sweep.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data import IGNORE_INDEX

_VOID = (0, 0, 0)
_OPACITY = 0.55  # of a class's colour over the picture
_LEGEND_COLUMNS = 6
_RIGHT, _WRONG = (225, 228, 232), (214, 39, 40)


def colourise(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Class indices (H, W) -> RGB uint8 (H, W, 3); ignored pixels are black."""
    table = np.full((256, 3), _VOID, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def save_mask(path: Path, labels: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write class indices (H, W) as a PNG whose pixel values are the indices, shown in the palette."""
    picture = Image.fromarray(labels.astype(np.uint8))
    flat = [channel for colour in palette for channel in colour]
    picture.putpalette(flat + [0] * (768 - len(flat)))
    picture.save(path)


def save_overlay(
    path: Path, image: np.ndarray, labels: np.ndarray, classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> None:
    """Write a picture with its classes drawn over it, and beside it a legend with each class's share.

    Args:
        image: RGB uint8 (H, W, 3).
        labels: class indices (H, W).
        classes, palette: of the data set.
    """
    blended = (1 - _OPACITY) * image + _OPACITY * colourise(labels, palette)
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    present = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    lines = [f"{classes[index]}  {100 * counts[index] / labels.size:.1f}%" for index in present]

    line = max(14, min(28, image.shape[0] // 20))
    font = ImageFont.load_default(size=round(0.72 * line))
    width = round(max(font.getlength(text) for text in lines)) + 3 * line
    height = max(image.shape[0], (len(lines) + 1) * line)
    canvas = Image.new("RGB", (image.shape[1] + width, height), "white")
    canvas.paste(Image.fromarray(blended.round().astype(np.uint8)))
    draw = ImageDraw.Draw(canvas)
    for row, (index, text) in enumerate(zip(present, lines, strict=True)):
        left, top = image.shape[1] + line // 2, line // 2 + row * line
        box = (left, top + line // 6, left + line, top + line * 5 // 6)
        draw.rectangle(box, fill=tuple(palette[index]), outline="black")
        draw.text((left + 1.5 * line, top + line // 2), text, fill="black", font=font, anchor="lm")
    canvas.save(path)


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
    titles = ("image", "truth", "prediction", "errors (red)")
    rows = [(image, labels.numpy(), prediction.numpy()) for image, labels, prediction in samples]
    seen = {index for _, *maps in rows for part in maps for index in np.unique(part).tolist()} - {IGNORE_INDEX}
    shown = sorted(seen)

    height, width = samples[0][0].shape[1:]
    legend_height = 0.3 + 0.18 * -(-len(shown) // _LEGEND_COLUMNS)
    figure = Figure(figsize=(10, 0.3 + len(rows) * 2.5 * height / width + legend_height), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, (image, labels, prediction) in zip(axes, rows, strict=True):
        errors = np.where((labels == prediction)[..., None], np.uint8(_RIGHT), np.uint8(_WRONG))
        errors[labels == IGNORE_INDEX] = _VOID
        pictures = (image.permute(1, 2, 0).numpy(), colourise(labels, palette), colourise(prediction, palette), errors)
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    figure.legend(
        [_patch(palette[index]) for index in shown],
        [classes[index] for index in shown],
        loc="outside lower center",
        ncols=min(len(shown), _LEGEND_COLUMNS),
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=120)


def save_curves(
    path: Path,
    train: Sequence[dict[str, float]],
    validation: Sequence[dict[str, float]],
    scores: Sequence[str],
) -> None:
    """Write the loss by term and the validation scores over iterations.

    Args:
        train: rows of the training log: "iteration", "loss", "loss/<term>".
        validation: rows of the validation log: "iteration" and scores in percent.
        scores: which of them.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in [key for key in train[0] if key.startswith("loss")] if train else []:
        points = [(row["iteration"], row[name]) for row in train if row.get(name) is not None]
        left.plot(*zip(*points, strict=True), label=name, linewidth=1.6 if name == "loss" else 0.9)
    left.set(xlabel="iteration", ylabel="loss", title="training")
    left.set_ylim(bottom=0)
    for name in scores:
        points = [(row["iteration"], row[name]) for row in validation]
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    right.set(xlabel="iteration", ylabel="percent", title="validation", ylim=(0, 100))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def save_comparison(path: Path, names: Sequence[str], values: Sequence[float], score: str) -> None:
    """Write a bar per run with its score in percent."""
    figure = Figure(figsize=(7, 1.1 + 0.42 * len(names)), layout="constrained")
    axis = figure.subplots()
    bars = axis.barh(range(len(names)), values, height=0.6, color="#4464ad")
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.invert_yaxis()  # the first run on top
    axis.set(xlabel=f"validation {score}, percent", xlim=(0, 108))
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    figure.savefig(path, dpi=120)


def _patch(colour: Sequence[int]):
    return Patch(facecolor=[channel / 255 for channel in colour], edgecolor="black", linewidth=0.5)
