"""Draw grids of images: samples, ground truth, predictions and errors side by side, with a legend of the classes.

Figures are built without pyplot, which would keep every figure of a sweep alive in a global list.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ...data import IGNORE_INDEX
from .label_images import Palette, blend, colourise, mark_errors
from .png_files import write_figure

_LEGEND_COLUMNS = 6


def save_panel(
    path: Path, samples: Sequence[tuple[Tensor, Tensor, Tensor]], classes: Sequence[str], palette: Palette
) -> None:
    """Save a panel with one row of image, ground truth, prediction and errors per sample.

    Args:
        path: the PNG file.
        samples: (image (3, H, W) in [0, 1], labels (H, W), prediction (H, W)).
        classes, palette: the names and colours of the K classes.
    """
    rows = [(image, labels.numpy(), prediction.numpy()) for image, labels, prediction in samples]
    pictures = [
        (
            image.permute(1, 2, 0).numpy(),
            colourise(labels, palette),
            colourise(prediction, palette),
            mark_errors(prediction, labels),
        )
        for image, labels, prediction in rows
    ]
    shown = _classes_in(part for _, *maps in rows for part in maps)
    _save_grid(path, pictures, ("image", "truth", "prediction", "errors (red)"), shown, classes, palette)


def save_samples(
    path: Path,
    rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray | None]]],
    titles: Sequence[str],
    classes: Sequence[str],
    palette: Palette,
) -> None:
    """Save a grid of images, some with labels drawn over them.

    Args:
        path: the PNG file.
        rows: for each row, one (RGB uint8 (H, W, 3), labels (H, W) or None) per column.
        titles: the column titles.
        classes, palette: the names and colours of the K classes.
    """
    pictures = [[image if labels is None else blend(image, labels, palette) for image, labels in row] for row in rows]
    shown = _classes_in(labels for row in rows for _, labels in row if labels is not None)
    _save_grid(path, pictures, titles, shown, classes, palette)


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
        names: the checkpoint of each network.
        classes, palette: the names and colours of the K classes.
    """
    labelled = rows[0][1] is not None
    titles = ["image", *(["truth"] if labelled else [])]
    for name in _shortened(names):
        titles += [name, "errors (red)"] if labelled else [name]
    pictures, maps = [], []
    for image, truth, predictions in rows:
        row = [image] if truth is None else [image, colourise(truth, palette)]
        for prediction in predictions:
            row.append(colourise(prediction, palette))
            if truth is not None:
                row.append(mark_errors(prediction, truth))
        pictures.append(row)
        maps += [*predictions] if truth is None else [truth, *predictions]
    _save_grid(path, pictures, titles, _classes_in(maps), classes, palette)


def _classes_in(maps: Iterable[np.ndarray]) -> list[int]:
    """Return the classes that occur in any of the label maps, in order."""
    return sorted({index for labels in maps for index in np.unique(labels).tolist()} - {IGNORE_INDEX})


def _shortened(names: Sequence[str]) -> list[str]:
    """Return the paths without their common leading and trailing parts."""
    parts = [Path(name.removesuffix(".safetensors")).parts for name in names]
    if len(parts) > 1:
        while min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
            parts = [part[1:] for part in parts]
        while min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
            parts = [part[:-1] for part in parts]
    return ["/".join(part) for part in parts]


def _save_grid(
    path: Path,
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    shown: Sequence[int],
    classes: Sequence[str],
    palette: Palette,
) -> None:
    """Save a grid of images under column titles, with a legend of the classes `shown` at the bottom."""
    ratios = [max(picture.shape[0] / picture.shape[1] for picture in row) for row in rows]
    legend_height = 0.3 + 0.18 * -(-len(shown) // _LEGEND_COLUMNS)
    width, height = 10, 0.3 + 10 / len(titles) * sum(ratios) + legend_height
    figure = Figure(figsize=(width, height))
    # Manual margins, because a constrained layout draws everything twice.
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


def _patch(colour: Sequence[int]) -> Patch:
    red, green, blue = (channel / 255 for channel in colour)
    return Patch(facecolor=(red, green, blue), edgecolor="black", linewidth=0.5)
