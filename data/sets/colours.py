"""Colours for classes that have none of their own."""

import colorsys
from collections.abc import Sequence

# Names of catch-all classes, which are drawn in dark grey.
_REST = ("background", "bg", "other", "others", "rest", "none", "unlabeled", "unlabelled", "clutter", "void")


def class_colours(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return an RGB triple per class: distinct colours, and dark greys for background and catch-all classes."""
    colours = distinct_colours(len(names))
    dark = [index for index, name in enumerate(names) if str(name).lower().strip("_ ") in _REST]
    for number, index in enumerate(dark):
        level = min(48 + 24 * number, 96)
        colours[index] = level, level, level
    return colours


def distinct_colours(number: int) -> list[tuple[int, int, int]]:
    """Return RGB triples whose hues are spaced by the golden angle, so that consecutive colours differ clearly."""
    colours = []
    for index in range(number):
        hue, saturation, value = index * 0.618034 % 1, 0.85 - 0.35 * (index % 3 == 1), 0.95 - 0.3 * (index % 2)
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours
