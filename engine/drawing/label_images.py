"""Draw label maps as colour masks, image overlays and error maps.

A palette contains one RGB triple per class.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...data import IGNORE_INDEX
from ...data.reading.image_files import as_stored
from .legend import count_classes, draw_legend, entries, hatch
from .png_files import write_png

_OPACITY = 0.55  # opacity of the class colours over an image
_RIGHT, _WRONG = (225, 228, 232), (214, 39, 40)
_LARGEST_OVERLAY = 2**25  # pixels; viewers and web pages fail on larger images
_BAND = 256  # number of rows blended at a time, to save memory

Palette = Sequence[Sequence[int]]


def colourise(labels: np.ndarray, palette: Palette) -> np.ndarray:
    """Convert class indices (H, W) to an RGB uint8 image (H, W, 3); ignored pixels are hatched."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return _hatch_ignored(table[labels], labels)


def blend(image: np.ndarray, labels: np.ndarray, palette: Palette, *, opacity: float = _OPACITY) -> np.ndarray:
    """Blend the class colours of labels (H, W) over an RGB uint8 image (H, W, 3); ignored pixels are hatched."""
    blended = colourise(labels, palette)
    for top in range(0, len(image), _BAND):
        band = slice(top, top + _BAND)
        blended[band] = ((1 - opacity) * image[band] + opacity * blended[band]).round()
    return blended


def mark_errors(prediction: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return an RGB uint8 error map (H, W, 3): wrong pixels in red, correct ones in grey, ignored ones hatched.

    Args:
        prediction, labels: class indices (H, W).
    """
    right, wrong = np.array(_RIGHT, dtype=np.uint8), np.array(_WRONG, dtype=np.uint8)
    return _hatch_ignored(np.where((labels == prediction)[..., None], right, wrong), labels)


def _hatch_ignored(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    ignored = labels == IGNORE_INDEX
    if ignored.any():
        image[ignored] = hatch(labels.shape)[ignored]
    return image


def save_mask(path: Path, labels: np.ndarray, palette: Palette, *, orientation: int = 1) -> None:
    """Save class indices (H, W) as a palette PNG, whose pixel values are the class indices.

    Args:
        path: the PNG file.
        labels: the class indices of the upright image.
        palette: the colours of the classes.
        orientation: the EXIF orientation of the image. The mask is stored in this orientation too, so that its pixels
            line up with those in the image file, and has the same EXIF tag, so that viewers show both the same way up.
    """
    stored = np.ascontiguousarray(as_stored(labels, orientation), dtype=np.uint8)
    picture = Image.fromarray(stored)
    flat = [channel for colour in palette for channel in colour]
    picture.putpalette(flat + [0] * (768 - len(flat)))
    write_png(path, picture, orientation=orientation)


def save_overlay(path: Path, image: np.ndarray, labels: np.ndarray, classes: Sequence[str], palette: Palette) -> int:
    """Save an image overlaid with its class colours, next to a legend with the percentage of each class.

    Args:
        path: the PNG file.
        image: RGB uint8 (H, W, 3).
        labels: class indices (H, W).
        classes, palette: the names and colours of the K classes.

    Returns:
        The factor by which the sides of the overlay are downsampled; 1 for images of up to 2^25 pixels.
    """
    legend = entries(count_classes(labels), classes, palette)
    step = math.ceil(math.sqrt(labels.size / _LARGEST_OVERLAY))
    image, labels = image[::step, ::step], labels[::step, ::step]
    write_png(path, beside(blend(image, labels, palette), draw_legend(legend, labels.shape)))
    return step


def beside(image: np.ndarray, legend: Image.Image) -> Image.Image:
    """Return an RGB uint8 image (H, W, 3) with a legend to its right, both aligned at the top."""
    canvas = Image.new("RGB", (image.shape[1] + legend.width, max(image.shape[0], legend.height)), "white")
    canvas.paste(Image.fromarray(image))
    canvas.paste(legend, (image.shape[1], 0))
    return canvas
