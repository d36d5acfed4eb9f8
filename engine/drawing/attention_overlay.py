"""Draw attention over an image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

from .png_files import write_figure

_MARK = "#00e676"  # colour of the point


def draw_attention(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Draw attention weights (h, w) over a grey version of an RGB uint8 image (H, W, 3); return a new RGB uint8 image.

    The colour scale is logarithmic and covers three decades below the maximum: on a linear one, a single strong
    position would hide all others.
    """
    height, width = image.shape[:2]
    levels = np.log10(np.maximum(weights / weights.max(), 1e-3)) / 3 + 1
    heat = Image.fromarray((255 * levels).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    shares = np.asarray(heat) / 255
    opacity = 0.85 * np.sqrt(shares)[..., None]
    colours = 255 * colormaps["inferno"](shares)[..., :3]
    return ((1 - opacity) * image.mean(axis=2, keepdims=True) + opacity * colours).round().astype(np.uint8)


def attention_title(loop: int, weights: np.ndarray) -> str:
    """Return a title with the number of loops and the percentage of positions with non-zero weight."""
    return f"R = {loop}: {100 * (weights > 0).mean():.0f}% of the positions"


def save_attention(path: Path, image: np.ndarray, maps: Sequence[np.ndarray], point: Sequence[int]) -> None:
    """Save a figure of a point's attention after each loop, drawn over the image, as in the paper's Fig. 7.

    Args:
        path: the PNG file.
        image: RGB uint8 (H, W, 3).
        maps: attention weights (h, w) after R = 1, 2, ... loops.
        point: (y, x) in pixels.
    """
    height, width = image.shape[:2]
    columns = len(maps) + 1
    figure = Figure(figsize=(3.4 * columns, 0.7 + 3.4 * height / width), layout="constrained")
    axes = figure.subplots(1, columns)
    axes[0].imshow(image)
    axes[0].set_title("image and point", fontsize=10)
    for loop, (axis, weights) in enumerate(zip(axes[1:], maps, strict=True), 1):
        axis.imshow(draw_attention(image, weights))
        axis.set_title(attention_title(loop, weights), fontsize=10)
    for axis in axes:
        axis.plot(point[1], point[0], "+", color=_MARK, markersize=11, markeredgewidth=2)
        axis.set_axis_off()
    bar = figure.colorbar(ScalarMappable(cmap="inferno"), ax=axes, shrink=0.8, ticks=[0, 1 / 3, 2 / 3, 1])
    bar.ax.set_yticklabels(["0.001 or less", "0.01", "0.1", "1"], fontsize=8)
    bar.set_label("attention, relative to the maximum", fontsize=8)
    write_figure(path, figure, bbox_inches="tight")
