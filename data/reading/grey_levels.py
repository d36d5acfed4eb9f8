"""Conversion of decoded images to 8-bit RGB, including grey images of more than 8 bits."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_BAND = 2**24  # number of pixels converted at a time
_DEEP = {"I": "32-bit whole numbers", "F": "32-bit floating point"}
# TIFF tags, and their values for samples in which 0 is white and for signed whole numbers.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_SAMPLE_FORMAT, _SIGNED = 339, 2
# Pillow's names of lossy formats, and of lossy compressions in TIFFs.
_LOSSY, _LOSSY_IN_TIFF = ("JPEG", "MPO", "WEBP"), ("jpeg", "tiff_jpeg")


class SampleFormat(NamedTuple):
    """Storage format of a sample, that is, of one channel of one pixel.

    Attributes:
        bits: the number of bits.
        signed: whether samples may be negative.
        white_is_zero: whether 0 is white in the file, as in some TIFFs; Pillow inverts such samples of up to 8 bits.
        lossy: whether the compression of the file changes samples, as JPEG's does.
    """

    bits: int
    signed: bool
    white_is_zero: bool = False
    lossy: bool = False


def sample_format(image: Image.Image) -> SampleFormat:
    """Return the sample format of an image file that has been opened but not yet decoded.

    It cannot be inferred from decoded images: Pillow reduces 16-bit colours to 8 bits, may widen 16-bit grey values to
    32 bits, and takes signed 8-bit and unsigned 32-bit numbers for their counterparts; see :func:`grey_values`.
    """
    tags = getattr(image, "tag_v2", {})
    lossy = image.format in _LOSSY or image.info.get("compression") in _LOSSY_IN_TIFF
    return SampleFormat(*_bits_and_sign(image, tags), tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO, lossy)


def _bits_and_sign(image: Image.Image, tags: Mapping[int, Any]) -> tuple[int, bool]:
    raw = raw_mode(image)
    if image.mode in ("I", "F") and (stored := re.search(r";(\d+)[A-Z]*?(S|F)?$", raw)):
        return int(stored[1]), stored[2] is not None
    if image.mode in ("I", "F"):
        return 32, True
    if stored := re.fullmatch(r"(?:I|L|LA|RGB|RGBA|RGBX|RGBa|CMYK);(\d+)[A-Z]*", raw):
        return int(stored[1]), False
    return 1 if image.mode == "1" else 8, image.mode == "L" and tags.get(_SAMPLE_FORMAT) == (_SIGNED,)


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the sample layout in the file of an opened image, such as "RGB;16B"."""
    tiles = image.tile if isinstance(image, ImageFile) else []
    arguments = [part for tile in tiles for part in ([tile[3]] if isinstance(tile[3], str) else tile[3] or ())]
    return next((part for part in arguments if isinstance(part, str)), image.mode)


def rgb_pixels(
    image: Image.Image, samples: SampleFormat, value_range: Sequence[float] | None, path: Path
) -> np.ndarray:
    """Return the pixels of a decoded image as RGB, uint8 (H, W, 3).

    Unsigned grey images of 9 to 16 bits are scaled by ``value_range`` or by their full range, signed and 32-bit images
    by ``value_range``. Unsigned 8-bit images are not scaled. Transparency is discarded.

    Args:
        image: the decoded image.
        samples: the sample format of the file.
        value_range: the values of black and white in grey images of more than 8 bits; NaN becomes black.
        path: the file, for error messages.

    Raises:
        ValueError: ``value_range`` is missing.
    """
    if not is_deep(image, samples):
        image.info.pop("transparency", None)  # Pillow warns about it
        return _by_rows(image, lambda part: np.asarray(part if part.mode == "RGB" else part.convert("RGB")))
    if value_range is None:
        if samples.bits > 16 or samples.signed:
            kind = _DEEP[image.mode] if samples.bits > 16 else f"signed {samples.bits}-bit numbers"
            raise needs_value_range(f"{path} has mode {image.mode}, {kind}", grey_values(image, samples))
        highest = 2**samples.bits - 1
        value_range = (highest, 0) if samples.white_is_zero else (0, highest)
    bounds = value_range
    return _by_rows(image, lambda part: scaled(grey_values(part, samples), bounds)[..., None])


def needs_value_range(found: str, values: np.ndarray) -> ValueError:
    """Return the error for values that need ``dataset.value_range``; ``found`` is the beginning of the message."""
    return ValueError(
        f"{found} (here from {np.nanmin(values):.6g} to {np.nanmax(values):.6g}): train with those of black and white, "
        "dataset.value_range=[BLACK,WHITE], or convert it to 8 bits"
    )


def is_deep(image: Image.Image, samples: SampleFormat) -> bool:
    """Return whether a decoded image is grey and its values have to be scaled to 8 bits."""
    return image.mode in _DEEP or image.mode.startswith("I;16") or (image.mode == "L" and samples.signed)


def grey_values(image: Image.Image, samples: SampleFormat) -> np.ndarray:
    """Return the values (H, W) of a decoded grey image as they are in the file."""
    values = np.asarray(image)
    if values.dtype == np.uint8 and samples.signed:
        return values.view(np.int8)
    if values.dtype == np.int32 and samples.bits == 32 and not samples.signed:
        return values.view(np.uint32)
    return values


def scaled(values: np.ndarray, value_range: Sequence[float]) -> np.ndarray:
    """Scale values to uint8 such that black and white, ``value_range``, become 0 and 255; NaN becomes black."""
    low, high = value_range
    real = np.result_type(values.dtype, np.float32).type  # float64 for 32-bit numbers, which float32 would round
    grey = (values.astype(real) - real(low)) * real(255 / (high - low))
    return np.nan_to_num(grey, nan=0.0).clip(0, 255).round().astype(np.uint8)


def _by_rows(image: Image.Image, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Convert an image to pixels (H, W, 3) in bands of rows, to save memory."""
    width, height = image.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(_BAND // width, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = convert(image if rows >= height else image.crop((0, top, width, bottom)))
    return pixels


def check_value_range(value_range: Sequence[float] | None) -> None:
    """Raise ValueError unless ``value_range`` is None or a pair of different finite numbers."""
    if value_range is None:
        return
    if len(value_range) != 2 or not all(map(math.isfinite, value_range)) or value_range[0] == value_range[1]:
        raise ValueError(
            f"dataset.value_range={list(value_range)}: set it to the values of black and white, such as [0,4095]"
        )
