"""Picture and label files into arrays."""

import functools
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 2**28  # 16384 x 16384: more than aerial pictures have, 0.8 GB as RGB
_LIMIT = "CCNET_MAX_IMAGE_PIXELS"
# The formats of IMAGE_SUFFIXES in file_lists.py. Pillow knows more, and starts Ghostscript for one of them.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_PNG = b"\x89PNG\r\n\x1a\n"
_RGB, _GREY = bytes([8, 2]), bytes([8, 0])  # bit depth and colour type in a PNG's header

_UNKNOWN = 254  # stands for a value that is no label of the data set


def read_image(path: Path) -> Tensor:
    """A picture file as RGB uint8 (3, H, W), turned upright as its EXIF orientation says."""
    pixels = _fast_png(path, _RGB)
    if pixels is None:
        pixels = np.array(_open(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


class UnreadablePicture(ValueError):
    """A file that is no picture, or no longer a whole one."""


class PictureTooLarge(ValueError):
    """More pixels than the limit; not unreadable, so that ``skip_broken`` leaves the decision to the user."""


def check_size(height: int, width: int, what: object) -> None:
    """Raise PictureTooLarge if ``what`` has more pixels than ``CCNET_MAX_IMAGE_PIXELS``, or than ``MAX_PIXELS``."""
    given = os.environ.get(_LIMIT, MAX_PIXELS)  # of the environment: it reaches every process that loads
    try:
        limit = int(given)
    except ValueError:
        raise ValueError(f"{_LIMIT}={given} is not a whole number: give the most pixels of a picture") from None
    if height < 1 or width < 1:
        raise ValueError(f"{what} has {width}x{height} pixels: give at least one")
    if height * width > limit:
        raise PictureTooLarge(
            f"{what} has {width}x{height} pixels, {height * width} in all, more than the limit of {limit}: if that is "
            f"meant, raise the limit with the environment variable {_LIMIT}={height * width}"
        )


class LabelReader:
    """Label files -> class indices.

    Args:
        label_ids: value in the file -> class index or ``IGNORE_INDEX``. The values are numbers, of grey or palette
            files of up to 16 bits, or all of them RGB triples, of colour files. Every other value is an error.
    """

    def __init__(self, label_ids: Mapping[int | tuple[int, int, int], int]):
        self.colour = isinstance(next(iter(label_ids)), tuple)
        codes = [_code(np.array(value)) if self.colour else value for value in label_ids]
        self.values = list(label_ids)
        self._index = np.full(2 ** (24 if self.colour else 16), _UNKNOWN, dtype=np.uint8)
        self._index[codes] = list(label_ids.values())

    def __call__(self, path: Path) -> Tensor:
        """The label file as uint8 (H, W)."""
        raw = self._read(path)
        codes = _code(raw) if self.colour else raw
        if codes.dtype == bool:
            codes = codes.astype(np.uint8)  # Pillow's true is a byte of 255
        if codes.dtype == np.uint8:  # a table of bytes is several times faster than an index array
            table = self._index[:256].tobytes()
            labels = np.frombuffer(bytearray(codes.tobytes().translate(table)), dtype=np.uint8).reshape(codes.shape)
        else:
            inside = codes.min() >= 0 and codes.max() < len(self._index)
            labels = self._index.take(codes) if inside else np.full(codes.shape, _UNKNOWN, dtype=np.uint8)
        if (labels == _UNKNOWN).any():
            raise ValueError(self._unknown(path, raw))
        return torch.from_numpy(labels)

    def _read(self, path: Path) -> np.ndarray:
        if not self.colour and (grey := _fast_png(path, _GREY)) is not None:
            return grey[..., 0]
        picture = _open(path)
        if self.colour:
            return np.asarray(picture.convert("RGB"))
        if picture.mode not in ("L", "P", "1", "I", "I;16"):
            raise ValueError(
                f"{path} is a colour picture (mode {picture.mode}): a label image holds one class number per pixel"
            )
        return np.asarray(picture)

    def _unknown(self, path: Path, raw: np.ndarray) -> str:
        found = np.unique(raw.reshape(-1, 3), axis=0) if self.colour else np.unique(raw)
        found = [tuple(value) if self.colour else value for value in found.tolist()]
        known = set(self.values)
        bad = [value for value in found if value not in known]
        listed = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        allowed = "" if self.colour else f" ({_ranges(np.array(sorted(known)))})"
        return (
            f"{path} holds the label value {listed}, outside the {len(known)} values of this dataset{allowed}: "
            "correct the file, or the dataset's class list"
        )


def _code(colours: np.ndarray) -> np.ndarray:
    """RGB (..., 3) -> one number (...)."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _open(path: Path) -> Image.Image:
    """The picture, upright: photos carry their orientation in EXIF, and masks drawn over them may do so too."""
    try:
        with _pillows_limit_lifted(), Image.open(path, formats=_FORMATS) as picture:
            check_size(picture.height, picture.width, path)
            picture.load()
            return ImageOps.exif_transpose(picture)
    except PictureTooLarge:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except Exception as error:  # Pillow's decoders each fail in their own way
        raise UnreadablePicture(f"{path} cannot be read as a picture, it may be cut off: {error}") from error


_lifting = threading.Lock()


@contextmanager
def _pillows_limit_lifted() -> Iterator[None]:
    """Pillow's limit is one for the process, and lower than this project's; its message speaks of an attack."""
    with _lifting:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def png_decoder() -> str:
    """What decodes RGB and grey PNGs of 8 bits here: "pywuffs" if it is installed, else "Pillow"."""
    return "pywuffs" if _wuffs_decoder(_RGB) else "Pillow"


def _fast_png(path: Path, kind: bytes) -> np.ndarray | None:
    """A PNG of that kind as uint8 (H, W, channels), or None for whatever is left to Pillow."""
    decoder = _wuffs_decoder(kind) if path.suffix.lower() == ".png" else None
    if decoder is None or not path.is_file():
        return None
    content = path.read_bytes()
    if content[:8] != _PNG or content[24:26] != kind or b"eXIf" in content:
        return None
    check_size(int.from_bytes(content[20:24]), int.from_bytes(content[16:20]), path)
    decoded = decoder.decode(content)
    return None if decoded.error_message else np.asarray(decoded.pixbuf)


@functools.cache
def _wuffs_decoder(kind: bytes):
    """The optional pywuffs (``pip install -e '.[fast]'``), twice as fast as Pillow."""
    try:
        from pywuffs import ImageDecoderType, PixelFormat
        from pywuffs.aux import ImageDecoder, ImageDecoderConfig
    except ImportError:
        return None
    config = ImageDecoderConfig()
    config.enabled_decoders = [ImageDecoderType.PNG]
    config.pixel_format = {_RGB: PixelFormat.RGB, _GREY: PixelFormat.Y}[kind]
    return ImageDecoder(config)


def _ranges(values: np.ndarray) -> str:
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
