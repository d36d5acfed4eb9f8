"""Colours for classes that have none of their own."""

import colorsys
from collections.abc import Sequence
from itertools import product

import numpy as np

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
    """Return RGB triples: eight whose hues are spaced by the golden angle, then those farthest from all before them."""
    colours = []
    for index in range(min(number, 8)):
        hue, saturation, value = index * 0.618034 % 1, 0.85 - 0.35 * (index % 3 == 1), 0.95 - 0.3 * (index % 2)
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    steps = np.array([*product(range(0, 256, 36), repeat=3)])
    candidates = steps[(np.ptp(steps, axis=1) >= 72) & (steps.max(axis=1) >= 108)]  # neither grey nor nearly black
    nearest = np.min([_distance(candidates, colour) for colour in colours], axis=0, initial=np.inf)
    for _ in range(number - len(colours)):
        chosen = candidates[nearest.argmax()]
        colours.append(tuple(chosen.tolist()))
        nearest = np.minimum(nearest, _distance(candidates, chosen))
    return colours


def _distance(colours: np.ndarray, colour: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return how different colours (N, 3) look from another one, as squared distances weighted by "redmean"."""
    difference, red = (colours - np.array(colour)) ** 2, (colours[:, 0] + colour[0]) / 2
    return difference @ [0, 4, 0] + difference[:, 0] * (2 + red / 256) + difference[:, 2] * (2 + (255 - red) / 256)
