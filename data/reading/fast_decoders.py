"""Decoders that are faster than Pillow and return the same pixels, for the most common kinds of images."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL.ImageFile import ImageFile

from .grey_levels import raw_mode

_ORIENTATION = (b"eXIf", b"iTXt")  # chunks of a PNG that may say how to turn it

Decoder = Callable[[bytes], Any]


def decode(image: ImageFile, path: Path) -> np.ndarray | None:
    """Return the pixels of an 8-bit RGB or grey file, uint8 (H, W, 3) or (H, W); None if Pillow has to decode it.

    Args:
        image: the image, opened by Pillow but not decoded. A PNG with an orientation is left to Pillow; a JPEG is
            returned as stored.
        path: its file.
    """
    decoder = _decoders().get((str(image.format), image.mode, raw_mode(image)))
    if decoder is None:
        return None
    content = path.read_bytes()
    if image.format == "PNG" and may_be_turned(content):
        return None
    try:
        pixels = decoder(content)
    except Exception:  # Pillow accepts some damaged files, and has the better messages for the others
        return None
    pixels = np.asarray(pixels)
    expected = (image.height, image.width, 3)[: 3 if image.mode == "RGB" else 2]
    return pixels if pixels.dtype == np.uint8 and pixels.shape == expected else None


def _chunks(content: bytes) -> Iterator[bytes]:
    """Yield the types of the chunks of a PNG, also of those after the pixels."""
    place = 8
    while place + 8 <= len(content):
        yield content[place + 4 : place + 8]
        place += 12 + int.from_bytes(content[place : place + 4])


def may_be_turned(content: bytes) -> bool:
    """Return whether a PNG contains metadata that may hold an orientation, which Pillow decodes the image to find."""
    return any(kind in _ORIENTATION for kind in _chunks(content))


def names() -> str:
    """Return the names of the decoders in use, such as "pyspng, simplejpeg", or "Pillow"."""
    libraries = {"PNG": "pyspng", "JPEG": "simplejpeg"}
    return ", ".join(dict.fromkeys(libraries[kind] for kind, *_ in _decoders())) or "Pillow"


@functools.cache
def _decoders() -> dict[tuple[str, str, str], Decoder]:
    """Return a decoder for each (format, mode, mode in the file) that an installed library decodes as Pillow does."""
    found: dict[tuple[str, str, str], Decoder] = {}
    try:
        import pyspng  # pyright: ignore[reportMissingImports]

        found["PNG", "RGB", "RGB"] = functools.partial(pyspng.load, format="RGB")
        found["PNG", "L", "L"] = functools.partial(pyspng.load, format="L")
    except ImportError:
        pass
    try:
        import simplejpeg  # pyright: ignore[reportMissingImports]

        found["JPEG", "RGB", "RGB"] = functools.partial(simplejpeg.decode_jpeg, colorspace="RGB")
    except ImportError:
        pass
    return found
