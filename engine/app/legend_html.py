"""The legend of a label map as HTML."""

import html
from collections.abc import Sequence

import numpy as np

from ...data import IGNORE_INDEX
from ..drawing import count_classes, most_frequent_first

_LINE = (
    '<li><span class="swatch" style="background: rgb({red}, {green}, {blue})"></span><span class="name">{name}</span>'
    '<span class="bar"><span style="width: {percent:.1f}%"></span></span><span class="share">{shown}</span></li>'
)


def legend_html(labels: np.ndarray, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> str:
    """Return an HTML list of the classes in a label map, most frequent first, with the percentage of pixels of each.

    Args:
        labels: class indices (H, W), uint8.
        classes, palette: the names, which are escaped here, and the RGB colours of the K classes.
    """
    counts = count_classes(labels)
    lines = []
    for index in most_frequent_first([labels]):
        known = index < len(classes)
        name = classes[index] if known else "ignored" if index == IGNORE_INDEX else f"class {index}"
        red, green, blue = palette[index] if known else (0, 0, 0)
        percent = 100 * counts[index] / labels.size
        shown = f"{percent:.1f}%" if percent >= 0.05 else "&lt;0.1%"
        line = _LINE.format(red=red, green=green, blue=blue, name=html.escape(name), percent=percent, shown=shown)
        lines.append(line)
    return f'<ul class="legend">{"".join(lines)}</ul>'
