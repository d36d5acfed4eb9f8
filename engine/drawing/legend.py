"""Legends of the classes in a label map, drawn beside an image."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ...data import IGNORE_INDEX
from .fonts import text_font

_COLUMNS = 3  # maximum number of columns beside an image; the last line counts the classes that do not fit
_FEWEST_ROWS = 10  # a column has room for at least this many rows, even if the image is less tall
_HATCH = (40, 40, 40), (125, 125, 125)  # stripes that mark ignored pixels


class LegendEntry(NamedTuple):
    """A line of a legend.

    Attributes:
        text: the name of the class, with its percentage if known.
        colour: RGB; None for a line without a colour swatch.
        ignored: show the hatching of ignored pixels.
    """

    text: str
    colour: Sequence[int] | None = None
    ignored: bool = False


def count_classes(*maps: np.ndarray) -> np.ndarray:
    """Count the pixels of each value 0 to 255 in label maps (H, W), a band of rows at a time to save memory."""
    counts = np.zeros(256, dtype=np.int64)
    for labels in maps:
        for top in range(0, len(labels), 1024):
            counts += np.bincount(labels[top : top + 1024].ravel(), minlength=256)
    return counts


def most_frequent_first(counts: np.ndarray) -> list[int]:
    """Return the values that occur, most frequent first but ``IGNORE_INDEX`` last; see :func:`count_classes`."""
    present = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    return sorted(present, key=lambda index: index == IGNORE_INDEX)


def entries(counts: np.ndarray, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> list[LegendEntry]:
    """Return the legend of the classes that occur, most frequent first, with the percentage of pixels of each.

    Args:
        counts: the number of pixels of each value; see :func:`count_classes`.
        classes, palette: the names and colours of the K classes.
    """
    lines = []
    for index in most_frequent_first(counts):
        share = percent(counts[index], counts)
        if index < len(classes):
            lines.append(LegendEntry(f"{classes[index]}  {share}", palette[index]))
        elif index == IGNORE_INDEX:
            lines.append(LegendEntry(f"ignored  {share}", ignored=True))
    return lines


def line_height(size: Sequence[int]) -> int:
    """Return a line height in pixels that is legible when an image of size (H, W) fills a screen."""
    return max(16, round(math.sqrt(size[0] * size[1]) / 34))


def column_rows(size: Sequence[int]) -> int:
    """Return the number of legend lines, at least 1, that fit beside an image of size (H, W)."""
    return max(size[0] // line_height(size) - 1, 1)


def draw_legend(lines: Sequence[LegendEntry], size: Sequence[int], *, width: int | None = None) -> Image.Image:
    """Draw a legend to put beside an image, adding columns when the entries exceed the image's height.

    Args:
        lines: the entries; a line "and N more" replaces those that do not fit.
        size: (H, W) of the image, which determines the text size.
        width: the width in pixels of a single-column legend that is no taller than the image; None for up to three
            columns as wide as their text.
    """
    line = line_height(size)
    rows = max(column_rows(size), _FEWEST_ROWS if width is None else 1)
    most = rows * _COLUMNS if width is None else rows
    if len(lines) > most:
        ignored = [entry for entry in lines if entry.ignored]
        kept = lines[: most - 1 - len(ignored)]
        lines = [*kept, LegendEntry(f"and {len(lines) - len(kept) - len(ignored)} more"), *ignored]
    font = text_font(round(0.65 * line), [entry.text for entry in lines])
    columns = [lines[start : start + rows] for start in range(0, len(lines), rows)]
    widths = [round(max(font.getlength(entry.text) for entry in column)) + 2 * line for column in columns]
    height = max(size[0], (min(rows, len(lines)) + 1) * line)
    canvas = Image.new("RGB", (width or sum(widths) + line, height), "white")
    draw, left = ImageDraw.Draw(canvas), line // 2
    for column, its_width in zip(columns, widths, strict=True):
        for row, entry in enumerate(column):
            top = line // 2 + row * line
            box = (left, top + line // 6, left + line, top + line * 5 // 6)
            if entry.ignored:
                stripes = hatch((box[3] - box[1], box[2] - box[0]), period=max(line // 4, 4))
                canvas.paste(Image.fromarray(stripes), box[:2])
            if entry.ignored or entry.colour is not None:
                fill = None if entry.colour is None else tuple(entry.colour)
                draw.rectangle(box, fill=fill, outline="black", width=max(line // 20, 1))
            draw.text((left + 1.4 * line, top + line // 2), entry.text, fill="black", font=font, anchor="lm")
        left += its_width
    return canvas


def legend_width(texts: Sequence[str], size: Sequence[int]) -> int:
    """Return the width in pixels that a single-column legend with these texts needs; see :func:`draw_legend`."""
    line = line_height(size)
    font = text_font(round(0.65 * line), texts)
    return round(max(font.getlength(text) for text in texts)) + 3 * line


def hatch(size: Sequence[int], *, period: int | None = None) -> np.ndarray:
    """Return the diagonal stripes that mark ignored pixels, RGB uint8 (H, W, 3).

    Args:
        size: (H, W).
        period: the distance between stripes in pixels; by default, one that is visible in an image of this size.
    """
    period = period or max(8, round(math.sqrt(size[0] * size[1]) / 40))
    stripe = (np.arange(size[0])[:, None] + np.arange(size[1])) % period < period / 2
    return np.array(_HATCH, dtype=np.uint8)[stripe.astype(np.uint8)]


def percent(count: int, counts: np.ndarray) -> str:
    """Return the share of a value's pixels as text, given the number of pixels of each value."""
    share = 100 * count / counts.sum()
    return f"{share:.1f}%" if share >= 0.05 else "<0.1%"
