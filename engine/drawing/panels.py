"""Draw grids of images: samples, ground truth, predictions and errors side by side, with a legend of the classes.

Figures are built without pyplot, which would keep every figure of a sweep alive in a global list.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ...data import IGNORE_INDEX
from .label_images import Palette, colourise, mark_errors
from .legend import count_classes, most_frequent_first
from .png_files import DPI, write_figure

_WIDTH, _COLUMN = 10, 1.5  # width of a figure and minimum width of a column, in inches
_CHARACTER = 0.078  # mean width of a character in a title, in inches
_TITLE_LINES = 3
_BASELINE = 0.035  # distance of a title's baseline from the images, in inches
_LARGEST = 1600  # maximum length of a thumbnail's longer side, in pixels


def save_panel(
    path: Path, samples: Sequence[tuple[Tensor, Tensor, Tensor]], classes: Sequence[str], palette: Palette
) -> None:
    """Save a panel with one row of image, ground truth, prediction and errors per sample.

    Args:
        path: the PNG file.
        samples: (image (3, H, W) in [0, 1], labels (H, W), prediction (H, W)).
        classes, palette: the names and colours of the K classes.
    """
    rows = []
    for image, labels, prediction in samples:
        truth, predicted = labels.numpy(), prediction.numpy()
        rows.append((image.permute(1, 2, 0).numpy(), truth, predicted, mark_errors(predicted, truth)))
    save_samples(path, rows, ("image", "truth", "prediction", "errors (red)"), classes, palette)


def save_samples(
    path: Path,
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    classes: Sequence[str],
    palette: Palette,
) -> None:
    """Save a grid of images and label maps, with a legend of the classes that occur.

    Args:
        path: the PNG file.
        rows: for each row, one RGB image (H, W, 3) or label map (H, W) per column.
        titles: the column titles.
        classes, palette: the names and colours of the K classes.
    """
    pictures = [[part if part.ndim == 3 else colourise(part, palette) for part in row] for row in rows]
    shown = most_frequent_first(count_classes(*(part for row in rows for part in row if part.ndim == 2)))
    save_grid(path, pictures, titles, shown, classes, palette)


def save_side_by_side(
    path: Path,
    rows: Sequence[tuple[np.ndarray, np.ndarray | None, Sequence[np.ndarray]]],
    names: Sequence[str],
    classes: Sequence[str],
    palette: Palette,
) -> None:
    """Save a panel with one row per image: image, ground truth and each network's prediction next to its errors.

    Args:
        path: the PNG file.
        rows: (RGB uint8 (H, W, 3), labels (H, W), one prediction (H, W) per network); if the labels are None, ground
            truth and errors are omitted.
        names: the checkpoint path of each network; column titles omit the parts that all paths share.
        classes, palette: the names and colours of the K classes.
    """
    labelled = rows[0][1] is not None
    titles = ["image", *(["truth"] if labelled else [])]
    for name in _shortened(names):
        titles += [name, "errors (red)"] if labelled else [name]
    pictures = []
    for image, truth, predictions in rows:
        row = [image] if truth is None else [image, truth]
        for prediction in predictions:
            row += [prediction] if truth is None else [prediction, mark_errors(prediction, truth)]
        pictures.append(row)
    save_samples(path, pictures, titles, classes, palette)


def thumbnails(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Subsample images or label maps (H, W, ...) of equal size to no more pixels than a panel can show."""
    step = -(-max(images[0].shape[:2]) // _LARGEST)
    return [image[::step, ::step].copy() for image in images]


def column_pixels(columns: int) -> int:
    """Return the width in pixels of an image in a grid with this many columns."""
    return round(max(_WIDTH / columns, _COLUMN) * DPI)


def _shortened(names: Sequence[str]) -> list[str]:
    """Return the paths without their common leading and trailing parts."""
    parts = [Path(name.removesuffix(".safetensors")).parts for name in names]
    if len(parts) > 1:
        while min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
            parts = [part[1:] for part in parts]
        while min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
            parts = [part[:-1] for part in parts]
    return [Path(*part).as_posix() for part in parts]


def save_grid(
    path: Path,
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    shown: Sequence[int] = (),
    classes: Sequence[str] = (),
    palette: Palette = (),
) -> None:
    """Save a grid of images under column titles, with a legend of classes at the bottom.

    Args:
        path: the PNG file.
        rows: RGB images of any size, one per title in each row; those in a row are aligned at the top.
        titles: the column titles, which are wrapped to the width of a column.
        shown: the indices of the classes in the legend, in order; ``IGNORE_INDEX`` appears as "ignored".
        classes, palette: the names and colours of the K classes.
    """
    ratios = [max(picture.shape[0] / picture.shape[1] for picture in row) for row in rows]
    width = max(_WIDTH, _COLUMN * len(titles))
    wrapped = [_wrapped(title, width / len(titles)) for title in titles]
    title_height = 0.08 + 0.14 * max(title.count("\n") + 1 for title in wrapped)
    names = ["ignored" if index == IGNORE_INDEX else str(classes[index]) for index in shown]
    # In inches: the patch, the gaps, and the longest name.
    columns = max(min(len(shown), int(width / (0.65 + 0.075 * max(map(len, names), default=0)))), 1)
    legend_height = 0.15 + 0.175 * -(-len(shown) // columns) if shown else 0.1
    height = title_height + width / len(titles) * sum(ratios) + legend_height
    figure = Figure(figsize=(width, height))
    # Manual margins, because a constrained layout draws everything twice.
    margins = {"left": 0.005, "right": 0.995, "top": 1 - title_height / height, "bottom": legend_height / height}
    grid = {"height_ratios": ratios, "wspace": 0.03, "hspace": 0.06} | margins
    bottoms, tops, lefts, rights = figure.add_gridspec(len(rows), len(titles), **grid).get_grid_positions(figure)
    # All images share the axes of the whole figure, because matplotlib takes longer to create axes than to draw them.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row, bottom, top in zip(rows, bottoms, tops, strict=True):
        for picture, left, right in zip(row, lefts, rights, strict=True):
            shape = picture.shape[0] / height, picture.shape[1] / width
            scale = min((top - bottom) / shape[0], (right - left) / shape[1])
            start = (left + right - scale * shape[1]) / 2
            box = (start, start + scale * shape[1], top - scale * shape[0], top)
            axes.imshow(picture, extent=box, aspect="auto", interpolation="antialiased")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for left, right, title in zip(lefts, rights, wrapped, strict=True):
        centre = (left + right) / 2, 1 - (title_height - _BASELINE) / height
        figure.text(*centre, title, fontsize=9, ha="center", va="baseline", linespacing=1.1)
    if shown:
        figure.legend(
            [_patch(None if index == IGNORE_INDEX else palette[index]) for index in shown],
            names,
            loc="upper center",
            bbox_to_anchor=(0.5, legend_height / height),
            ncols=columns,
            fontsize=8,
            frameon=False,
        )
    write_figure(path, figure)


def _wrapped(title: str, inches: float) -> str:
    """Wrap a title to at most three lines that fit a column; the middle of a longer title is omitted."""
    width = max(int(inches / _CHARACTER), 6)
    if len(title) > _TITLE_LINES * width:
        half = (_TITLE_LINES * width - 3) // 2
        title = f"{title[:half]}...{title[-half:]}"
    # Paths break after punctuation; words longer than a line break anywhere.
    words = re.sub(r"([/_.=,])", "\\1\0", title).replace(" ", " \0").split("\0")
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(line.strip() for line in lines)


def _patch(colour: Sequence[int] | None) -> Patch:
    if colour is None:
        return Patch(facecolor="#282828", edgecolor="#9a9a9a", hatch="/////", linewidth=0.5)
    red, green, blue = (channel / 255 for channel in colour)
    return Patch(facecolor=(red, green, blue), edgecolor="black", linewidth=0.5)
