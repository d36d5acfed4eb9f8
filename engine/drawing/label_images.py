"""Draw label maps as colour masks, image overlays and error maps.

A palette contains one RGB triple per class.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...data import IGNORE_INDEX
from .png_files import write_png

_VOID = (0, 0, 0)
_OPACITY = 0.55  # opacity of the class colours over an image
_RIGHT, _WRONG = (225, 228, 232), (214, 39, 40)

Palette = Sequence[Sequence[int]]


def colourise(labels: np.ndarray, palette: Palette) -> np.ndarray:
    """Convert class indices (H, W) to an RGB uint8 image (H, W, 3); ignored pixels are black."""
    table = np.full((256, 3), _VOID, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def blend(image: np.ndarray, labels: np.ndarray, palette: Palette) -> np.ndarray:
    """Blend the class colours of labels (H, W) over an RGB uint8 image (H, W, 3); ignored pixels are darkened."""
    return ((1 - _OPACITY) * image + _OPACITY * colourise(labels, palette)).round().astype(np.uint8)


def mark_errors(prediction: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return an RGB uint8 error map (H, W, 3): wrong pixels in red, correct ones in grey, ignored ones in black.

    Args:
        prediction, labels: class indices (H, W).
    """
    right, wrong = np.array(_RIGHT, dtype=np.uint8), np.array(_WRONG, dtype=np.uint8)
    errors = np.where((labels == prediction)[..., None], right, wrong)
    errors[labels == IGNORE_INDEX] = _VOID
    return errors


def save_mask(path: Path, labels: np.ndarray, palette: Palette) -> None:
    """Save class indices (H, W) as a palette PNG, whose pixel values are the class indices."""
    picture = Image.fromarray(labels.astype(np.uint8))
    flat = [channel for colour in palette for channel in colour]
    picture.putpalette(flat + [0] * (768 - len(flat)))
    write_png(path, picture)


def save_overlay(path: Path, image: np.ndarray, labels: np.ndarray, classes: Sequence[str], palette: Palette) -> None:
    """Save an image overlaid with its class colours, next to a legend with the percentage of each class.

    Args:
        path: the PNG file.
        image: RGB uint8 (H, W, 3).
        labels: class indices (H, W).
        classes, palette: the names and colours of the K classes.
    """
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    present = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    lines = [f"{classes[index]}  {100 * counts[index] / labels.size:.1f}%" for index in present]

    line = max(14, min(28, image.shape[0] // 20))  # pixels
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
