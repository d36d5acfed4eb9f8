"""Images with any number of channels: NumPy arrays, multi-band TIFFs, and images decoded by Pillow."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import UnreadableImage
from .grey_levels import needs_value_range, scaled
from .size_limit import check_size

_NUMPY, _TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 274  # TIFF tag
_MIN_IS_BLACK, _RGB, _INTERLEAVED = 1, 2, 1  # values of the TIFF tags PhotometricInterpretation, PlanarConfiguration
_NEEDED = "multi-band TIFFs need tifffile: pip install 'ccnet-segmentation[bands]'"


def is_array(path: Path, channels: int = 3) -> bool:
    """Return whether :func:`read_array` decodes a file: a NumPy array, or a TIFF that is not left to Pillow.

    With tifffile installed and ``channels`` neither 1 nor 3, Pillow only gets 8-bit TIFFs of that many channels whose
    compression tifffile cannot read. The pages of any other TIFF may be the channels of one image; for 1 and 3, they
    are if the file says so.
    """
    start = _start(path)
    if start.startswith(_NUMPY):
        return True
    library = _tifffile() if start.startswith(_TIFF) else None
    if library is None:
        return False
    try:
        with library.TiffFile(path) as file:
            page = file.pages[0]
            if channels in (1, 3):
                return not _left_to_pillow(page) or _has_channel_pages(file)
            readable = page.compression in library.TIFF.DECOMPRESSORS
            return readable or page.samplesperpixel != channels or not _left_to_pillow(page)
    except Exception:  # for 1 and 3 channels, Pillow reports what is wrong with the file
        return channels not in (1, 3)


def _left_to_pillow(page: Any) -> bool:
    """Return whether Pillow reads the pixels of a TIFF page, as opened by tifffile, correctly."""
    samples, kind = page.samplesperpixel, page.dtype
    if samples == 1:
        return kind.itemsize < 8 and kind != np.float16
    if samples == 3 and page.photometric not in (_MIN_IS_BLACK, _RGB):  # such as LAB: converted or rejected
        return True
    if samples == 3 and kind == np.uint16:
        return page.photometric == _RGB and page.planarconfig == _INTERLEAVED
    return samples <= 4 and kind == np.uint8 and not (samples > 2 and page.photometric == _MIN_IS_BLACK)


def _has_channel_pages(file: Any) -> bool:
    """Return whether the pages of a TIFF, as opened by tifffile, are channels according to ImageJ or OME."""
    return bool(file.is_imagej or file.is_ome) and file.series[0].axes == "CYX"


def read_array(path: Path, channels: int) -> np.ndarray | None:
    """Return the values of a NumPy array or a multi-band TIFF; None if Pillow has to decode the file.

    Arrays are (H, W, C), or (C, H, W) as in TIFFs that store one band per page. Single-channel images may be (H, W).
    Their orientation tag, see :func:`array_orientation`, is not applied.

    Args:
        path: the file.
        channels: the number of input channels C of the network.

    Raises:
        ImageTooLarge: see :func:`~ccnet.data.reading.size_limit.check_size`.
        UnreadableImage: the file is damaged.
        ValueError: the image does not have ``channels`` channels (single-channel images are also accepted for 3), or
            tifffile needs imagecodecs to decompress it.
    """
    if not is_array(path, channels):
        return None
    with _reading(path):
        stored_shape, _, decode = _stored(path)
    shape, first = _layout(stored_shape, channels, path)
    height, width = shape[1:] if first else shape[:2]
    check_size(height, width, path)
    with _reading(path):
        return decode()


def array_bits(path: Path) -> int:
    """Return the number of bits of each value in a file that :func:`read_array` decodes, without decoding it."""
    with _reading(path):
        _, kind, _ = _stored(path)
        return 8 * kind.itemsize


def array_orientation(path: Path) -> int:
    """Return the orientation tag, from 1 to 8, of a file that :func:`read_array` decodes; 1 for NumPy arrays."""
    if _is_numpy(path):
        return 1
    with _reading(path), _tifffile().TiffFile(path) as file:
        tag = file.pages[0].tags.get(_ORIENTATION)
        return int(tag.value) if tag else 1


def channels_last(values: np.ndarray, channels: int, subject: object) -> np.ndarray:
    """Return an array (H, W), (H, W, C) or (C, H, W) as (H, W, C); grey images stay (H, W, 1) even if C is 3.

    Raises:
        ValueError: the image does not have ``channels`` channels (single-channel images are also accepted for 3); the
            message names ``subject``.
    """
    shape, first = _layout(values.shape, channels, subject)
    values = values.reshape(shape)
    return np.moveaxis(values, 0, -1) if first else values


def _layout(shape: Sequence[int], channels: int, subject: object) -> tuple[tuple[int, ...], bool]:
    """Return the shape of an array with a channel axis added if it is (H, W), and whether the channels come first."""
    full = tuple(shape) if len(shape) == 3 else (*shape, 1)
    first = len(shape) == 3 and full[0] == channels != full[-1]
    number = full[0] if first else full[-1]
    if len(full) != 3 or not (number == channels or (number == 1 and channels == 3)):
        grey = ", (H, W)" if channels in (1, 3) else ""
        raise ValueError(
            f"{subject} has the shape {tuple(shape)}: expected (H, W, {channels}){grey} or ({channels}, H, W), as "
            f"backbone.in_channels={channels} says"
        )
    return full, first


def _stored(path: Path) -> tuple[tuple[int, ...], np.dtype, Callable[[], np.ndarray]]:
    """Return the shape and type of the array in a file, and a function that decodes it once its size is checked."""
    if _is_numpy(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array.shape, array.dtype, lambda: np.asarray(array)
    library = _tifffile()
    with library.TiffFile(path) as file:
        first, *others = file.series
        shape, kind = tuple(first.shape), np.dtype(first.dtype)
        if others and first.ndim == 2 and all((other.shape, other.dtype) == (shape, kind) for other in others):
            return (len(file.series), *shape), kind, lambda: library.imread(path, key=slice(None))  # written one by one
        return shape, kind, lambda: library.imread(path, series=0)


@contextmanager
def _reading(path: Path) -> Generator[None]:
    """Re-raise any error of NumPy or tifffile as one that names the file."""
    try:
        yield
    except Exception as error:
        if "'imagecodecs'" in str(error):  # not damage, which `skip_broken` would tolerate
            raise ValueError(
                f"{path} is compressed in a way that tifffile cannot read: pip install imagecodecs, or save it "
                f"without compression ({error})"
            ) from error
        raise UnreadableImage(f"{path} cannot be read as an image and may be damaged: {error}") from error


def eight_bits(values: np.ndarray, value_range: Sequence[float] | None, subject: object) -> np.ndarray:
    """Convert values (H, W, C) to uint8.

    uint8 values are not scaled, and booleans become 0 and 255. uint16 values are scaled by ``value_range`` or by their
    full range, values of other types by ``value_range``.

    Raises:
        ValueError: ``value_range`` is needed but None, or the values are not real numbers; the message names
            ``subject``.
    """
    values = values.astype(values.dtype.newbyteorder("="), copy=False)  # big-endian types differ from NumPy's constants
    if values.dtype == np.uint8:
        return np.array(values)  # a copy in memory: the file may be memory-mapped
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{subject} has values of type {values.dtype}: expected real numbers")
    if value_range is None and values.dtype != np.uint16:
        raise needs_value_range(f"{subject} has values of type {values.dtype}", values)
    return scaled(values, value_range or (0, 2**16 - 1))


def pillow_channels(image: Image.Image, channels: int, path: Path) -> np.ndarray:
    """Return the channels of a decoded image, uint8 (H, W, C): one converts it to grey, others must be the file's own.

    Raises:
        ValueError: the image has another number of channels.
    """
    if channels == 1:
        return np.array(image.convert("L"))[..., None]
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if len(image.getbands()) != channels:
        hint = f"; {_NEEDED}" if is_tiff(path) and _tifffile() is None else ""
        number = len(image.getbands())
        found = f"{path} has {number} channel{'s' if number > 1 else ''} (mode {image.mode})"
        raise ValueError(f"{found}, but backbone.in_channels={channels}{hint}")
    return np.array(image)


def drawn_channels(image: Any, rgb: Sequence[int] | None) -> Any:
    """Return the three channels of an image (C, ...) that are drawn as red, green and blue.

    Args:
        image: a tensor or an array.
        rgb: their indices. None uses the first three; a single channel is repeated three times, and the second of two
            channels twice.
    """
    number = len(image)
    return image[[min(index, number - 1) for index in range(3)] if rgb is None else list(rgb)]


def check_channels(channels: int, rgb: Sequence[int] | None) -> None:
    """Raise ValueError unless ``rgb`` is None or contains three channel indices."""
    if rgb is not None and not (len(rgb) == 3 and all(0 <= index < channels for index in rgb)):
        raise ValueError(
            f"dataset.rgb={list(rgb)}: set it to three channels from 0 to {channels - 1}, drawn as red, green and blue"
        )


def is_tiff(path: Path) -> bool:
    """Return whether a file begins like a TIFF."""
    return _start(path).startswith(_TIFF)


def _is_numpy(path: Path) -> bool:
    return _start(path).startswith(_NUMPY)


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(8)
    except OSError:
        return b""  # opening the file for decoding reports the error


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError:
        return None
    return tifffile
