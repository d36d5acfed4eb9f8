"""Decoding of untrusted image files: sizes are checked before decoding, and only a few formats are accepted."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .size_limit import ImageTooLarge, check_size

# The formats of IMAGE_SUFFIXES in file_lists.py. Pillow supports more, and runs Ghostscript for one of them.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB_PNG, GREY_PNG = bytes([8, 2]), bytes([8, 0])  # bit depth and colour type in the PNG header


class UnreadableImage(ValueError):
    """A file that is not an image, or is truncated."""


def read_image(path: Path) -> Tensor:
    """Read an image file as RGB uint8 (3, H, W), with its EXIF orientation applied.

    Raises:
        FileNotFoundError: the file does not exist.
        UnreadableImage: the file is not an image, or is truncated.
        ImageTooLarge: see :func:`~ccnet.data.size_limit.check_size`.
    """
    pixels = decode_png(path, RGB_PNG)
    if pixels is None:
        pixels = np.array(open_upright(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def open_upright(path: Path) -> Image.Image:
    """Decode an image and apply its EXIF orientation, which cameras set and masks may inherit."""
    try:
        with _pillow_limit_lifted(), Image.open(path, formats=_FORMATS) as image:
            check_size(image.height, image.width, path)
            image.load()
            return ImageOps.exif_transpose(image)
    except ImageTooLarge:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions
        raise UnreadableImage(f"{path} cannot be read as an image and may be truncated: {error}") from error


_lifting = threading.Lock()


@contextmanager
def _pillow_limit_lifted() -> Iterator[None]:
    """Lift Pillow's own limit, which is global, lower than this project's, and reported as a possible attack."""
    with _lifting:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def png_decoder() -> str:
    """Return the name of the decoder for 8-bit RGB and grey PNGs: "pywuffs" if it is installed, else "Pillow"."""
    return "pywuffs" if _wuffs_decoder(RGB_PNG) else "Pillow"


def decode_png(path: Path, kind: bytes) -> np.ndarray | None:
    """Decode a PNG with pywuffs into uint8 (H, W, channels); return None if Pillow has to decode it.

    Args:
        kind: ``RGB_PNG`` or ``GREY_PNG``, the kind to decode; any other PNG is left to Pillow.
    """
    decoder = _wuffs_decoder(kind) if path.suffix.lower() == ".png" else None
    if decoder is None or not path.is_file():
        return None
    content = path.read_bytes()
    if content[:8] != _PNG_SIGNATURE or content[24:26] != kind or b"eXIf" in content:
        return None
    check_size(int.from_bytes(content[20:24]), int.from_bytes(content[16:20]), path)
    decoded = decoder.decode(content)
    return None if decoded.error_message else np.asarray(decoded.pixbuf)


@functools.cache
def _wuffs_decoder(kind: bytes) -> Any:
    """Return a decoder from pywuffs (``pip install -e '.[fast]'``), twice as fast as Pillow; None if not installed."""
    try:
        from pywuffs import ImageDecoderType, PixelFormat  # pyright: ignore[reportMissingImports]
        from pywuffs.aux import ImageDecoder, ImageDecoderConfig  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    config = ImageDecoderConfig()
    config.enabled_decoders = [ImageDecoderType.PNG]
    config.pixel_format = {RGB_PNG: PixelFormat.RGB, GREY_PNG: PixelFormat.Y}[kind]
    return ImageDecoder(config)
