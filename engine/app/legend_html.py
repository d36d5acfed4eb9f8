"""The legend of a label map as HTML."""

import html
from collections.abc import Sequence

import numpy as np

from ..drawing.legend import count_classes, most_frequent_first, percent

_LINE = (
    '<li><span class="swatch" style="background: rgb({red}, {green}, {blue})"></span><span class="name">{name}</span>'
    '<span class="bar"><span style="width: {width:.1f}%"></span></span><span class="share">{shown}</span></li>'
)


def legend_html(labels: np.ndarray, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> str:
    """Return an HTML list of the predicted classes, most frequent first, with the percentage of pixels of each.

    Args:
        labels: class indices (H, W), uint8, as a network predicts them.
        classes, palette: the names, which are escaped here, and the RGB colours of the K classes.
    """
    counts = count_classes(labels)
    lines = []
    for index in most_frequent_first(counts):
        red, green, blue = palette[index]
        name, shown = html.escape(classes[index]), html.escape(percent(counts[index], counts))
        width = 100 * counts[index] / labels.size
        lines.append(_LINE.format(red=red, green=green, blue=blue, name=name, width=width, shown=shown))
    return f'<ul class="legend">{"".join(lines)}</ul>'
