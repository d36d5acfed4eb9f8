"""Decoding of untrusted image files: sizes are checked before decoding, and only a few formats are accepted."""

import threading
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin
from PIL.ImageFile import ImageFile
from torch import Tensor

from . import fast_decoders
from .bands import (
    array_bits,
    array_orientation,
    channels_last,
    eight_bits,
    is_array,
    is_tiff,
    pillow_channels,
    read_array,
)
from .errors import ImageTooLarge, UnreadableImage
from .grey_levels import EIGHT_BITS, SampleFormat, is_deep, rgb_pixels, sample_format
from .size_limit import check_size

# Detected by content, not by suffix. Pillow's other formats are disabled; for one of them, it would run Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
_BITS, _PLANES = 258, 284  # TIFF tags: bits of each sample; 2 if the bands are stored one after the other
_TEXT_LIMIT = 2**26  # bytes of an inflated text or colour profile in a PNG; Pillow's own limit is 1 MB

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path, value_range: Sequence[float] | None = None, channels: int = 3) -> Tensor:
    """Read an image file as uint8 (C, H, W), RGB if C is 3, with its EXIF orientation applied.

    Args:
        path: the file.
        value_range: the values of black and white in images of more than 8 bits; see
            :func:`~ccnet.data.reading.grey_levels.rgb_pixels` and :func:`~ccnet.data.reading.bands.eight_bits`.
        channels: the number of channels C. 3 converts images to RGB and 1 to grey; any other number must be that of the
            file.

    Raises:
        FileNotFoundError: the file does not exist.
        UnreadableImage: the file is not an image, or is truncated.
        ImageTooLarge: see :func:`~ccnet.data.reading.size_limit.check_size`.
        ValueError: the pixels cannot be converted to 8 bits, or the file has another number of channels.
    """
    pixels = _fast_upright(path, {3: "RGB", 1: "L"}.get(channels, ""))
    if pixels is not None:
        pixels = pixels.reshape(*pixels.shape[:2], channels)
    elif (values := read_array(path, channels)) is not None:
        stored = array_image(values, value_range, channels, path)
        pixels = _as_upright(stored.movedim(0, -1).numpy(), array_orientation(path))
    else:
        pixels = in_channels(*_pillow_upright(path), value_range, channels, path)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def array_image(values: np.ndarray, value_range: Sequence[float] | None, channels: int, subject: object) -> Tensor:
    """Convert an array (H, W), (H, W, C) or (C, H, W) to an image, uint8 (C, H, W); see :func:`read_image`.

    Raises:
        ValueError: the shape or the values cannot be converted to such an image; the message names ``subject``.
    """
    pixels = eight_bits(channels_last(values, channels, subject), value_range, subject)
    return torch.from_numpy(pixels).permute(2, 0, 1).expand(channels, -1, -1)  # a grey array becomes RGB


def in_channels(
    image: Image.Image, samples: SampleFormat, value_range: Sequence[float] | None, channels: int, path: Path
) -> np.ndarray:
    """Convert a decoded image to ``channels`` channels, uint8 (H, W, C); see :func:`read_image`.

    Raises:
        ValueError: the image cannot be converted, or ``value_range`` is set for 16-bit colours.
    """
    deep = is_deep(image, samples)
    if channels in (1, 3) and not deep and image.mode not in EIGHT_BITS:
        raise ValueError(f"{path} has mode {image.mode}, which is not supported: convert it to RGB or grey")
    if samples.bits > 8 and not deep and value_range is not None:
        raise ValueError(
            f"{path} has {samples.bits}-bit colours (mode {image.mode}), but value_range={list(value_range)} applies "
            "to grey images without transparency only: convert it to 8 bits, or to a .npy array "
            f"(H, W, {channels})"
        )
    if channels == 3 or (channels == 1 and deep):
        return rgb_pixels(image, samples, value_range, path)[..., :channels]
    return pillow_channels(image, channels, path)


def size_of(path: Path) -> tuple[int, int]:
    """Return the size (H, W) of an image as stored in its file, without decoding it."""
    with _opened(path) as image:
        return image.height, image.width


def describe(path: Path, channels: int = 3) -> str:
    """Return the bit depth and mode of an image file, such as "16-bit I;16" or "8-bit array", without decoding it.

    If the image is turned upright because of its EXIF orientation, it says so.

    Args:
        path: the file.
        channels: the number of channels with which it is read; see :func:`read_image`.
    """
    if is_array(path, channels):
        kind = f"{array_bits(path)}-bit array"
    else:
        with _opened(path) as image:
            kind = f"{sample_format(image).bits}-bit {image.mode}"
    return kind if orientation(path, channels) == 1 else f"{kind}, turned upright as EXIF says"


def open_upright(path: Path, *, fast_mode: str) -> tuple[Image.Image | np.ndarray, SampleFormat]:
    """Decode a label image and apply its EXIF orientation, which it may inherit from its photo.

    Args:
        path: the file.
        fast_mode: "RGB" or "L". PNGs of this mode may be decoded by a faster library.

    Returns:
        The image, from a faster library as uint8 (H, W, 3) or (H, W) and otherwise as a Pillow image; and the sample
        format of the file, see :func:`~ccnet.data.reading.grey_levels.sample_format`.
    """
    pixels = _fast_upright(path, fast_mode, lossless=True)
    return _pillow_upright(path) if pixels is None else (pixels, SampleFormat(bits=8, signed=False))


def _fast_upright(path: Path, mode: str, *, lossless: bool = False) -> np.ndarray | None:
    """Decode an image of ``mode`` with a faster library and apply its orientation; None if Pillow has to decode it.

    With ``lossless``, only PNGs are decoded.
    """
    content = fast_decoders.read(path)
    if content is None or _is_damaged(content, path) or (lossless and not fast_decoders.is_png(content)):
        return None
    header = fast_decoders.header_of(content)
    # To find the orientation of a PNG, Pillow decodes it, so a faster decoder would gain nothing.
    if header is None or header.mode != mode or (header.may_be_turned and header.kind == "PNG"):
        return None
    check_size(header.height, header.width, path)
    pixels = fast_decoders.decode(content, header)
    return None if pixels is None else _as_upright(pixels, orientation(path) if header.may_be_turned else 1)


def _is_damaged(content: bytes, path: Path) -> bool:
    """Return whether a PNG has damaged metadata, which Pillow may ignore; raise UnreadableImage for damaged pixels."""
    damaged = fast_decoders.wrong_checksums(content) if fast_decoders.is_png(content) else []
    if any(kind[:1].isupper() for kind in damaged):  # the chunks that are needed to decode the pixels
        raise UnreadableImage(f"{path} is damaged, as its checksum is wrong: replace it with an intact copy")
    return bool(damaged)


def _pillow_upright(path: Path) -> tuple[Image.Image, SampleFormat]:
    with _opened(path) as image:
        samples = sample_format(image)
        _check_planes(image, path)
        return loaded_upright(image), samples


def _check_planes(image: ImageFile, path: Path) -> None:
    """Raise UnreadableImage for a TIFF that Pillow reads as noise: bands of 16 bits, stored one after the other."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANES) == 2 and max(tags.get(_BITS, (8,))) > 8 and len(image.getbands()) > 1:
        raise UnreadableImage(
            f"{path} stores its {tags[_BITS][0]}-bit bands one after the other: convert it to 8 bits; photos, but not "
            "label images, can be read as they are after pip install 'ccnet-segmentation[bands]'"
        )


def loaded_upright(image: ImageFile) -> Image.Image:
    """Decode an opened image and apply its EXIF orientation."""
    image.load()
    turn = _UPRIGHT.get(exif_orientation(image))  # after loading, since Pillow turns TIFFs itself and drops the tag
    return image if turn is None else image.transpose(turn)


def orientation(path: Path, channels: int = 3) -> int:
    """Return the EXIF orientation of an image file, from 1 to 8, as applied by :func:`read_image`."""
    if is_array(path, channels):
        return array_orientation(path)
    with _opened(path) as image:
        if image.format == "PNG" and not fast_decoders.may_be_turned(path.read_bytes()):
            return 1
        return exif_orientation(image)


def as_stored(array: np.ndarray, orientation: int) -> np.ndarray:
    """Map an array (..., H, W) of an upright image back to the pixel orientation stored in its file."""
    flips = {
        2: array[..., ::-1],
        3: array[..., ::-1, ::-1],
        4: array[..., ::-1, :],
        5: array.swapaxes(-1, -2),
        6: array.swapaxes(-1, -2)[..., ::-1, :],
        7: array[..., ::-1, ::-1].swapaxes(-1, -2),
        8: array.swapaxes(-1, -2)[..., ::-1],
    }
    return flips.get(orientation, array)


def _as_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array (H, W) or (H, W, 3) from the orientation stored in its file upright."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    channels_first = np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels
    turned = as_stored(channels_first, inverse)
    return np.ascontiguousarray(np.moveaxis(turned, 0, -1) if pixels.ndim == 3 else turned)


def pillow_image(path: Path) -> ImageFile:
    """Open an image with Pillow without decoding it."""
    image = Image.open(path, formats=FORMATS)
    image.filename = ""  # else Pillow memory-maps uncompressed files, and garbles TIFFs that are rotated by 90 degrees
    return image


@contextmanager
def _opened(path: Path) -> Generator[ImageFile]:
    """Open an image without decoding it; errors raised while the caller decodes it name the file."""
    with reading(path), pillow_image(path) as image:
        check_size(image.height, image.width, path)
        yield image


@contextmanager
def reading(subject: object) -> Generator[None]:
    """Lift Pillow's limits while a file is read; replace its errors with this project's, which name ``subject``."""
    try:
        with _pillow_limits_lifted(), warnings.catch_warnings(action="ignore"):  # of damaged, unused metadata
            yield
    except (ImageTooLarge, UnreadableImage):
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{subject} does not exist") from None
    except Image.UnidentifiedImageError:
        if isinstance(subject, Path) and is_tiff(subject):
            raise UnreadableImage(
                f"{subject} is a TIFF of an unsupported kind, such as 64-bit numbers or 16-bit LAB colours: save it "
                "as grey or RGB with 8 or 16 bits"
            ) from None
        raise UnreadableImage(
            f"{subject} cannot be read as an image: its content is in none of the formats {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions
        raise UnreadableImage(f"{subject} cannot be read as an image and may be truncated: {error}") from error


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image; 1, upright, if the metadata is missing or damaged."""
    try:
        # `ImageOps.exif_transpose` would rewrite all other tags as well, and fail on malformed ones.
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # each kind of damage raises a different error; viewers ignore them all
        return 1


_lifting = threading.Lock()


@contextmanager
def _pillow_limits_lifted() -> Generator[None]:
    """Lift Pillow's own limits, which are global.

    Its limit on the image size is lower than this project's and is reported as a possible attack; its limit on PNG
    metadata rejects colour profiles that occur in practice.
    """
    with _lifting:
        before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = None, _TEXT_LIMIT  # pyrefly: ignore[bad-assignment]
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before
