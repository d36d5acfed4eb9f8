"""Read label images, whose pixels are class numbers or colours."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..dataset import IGNORE_INDEX
from .file_lists import LOSSY
from .frames import pages_of
from .grey_levels import grey_values
from .image_files import open_upright, orientation
from .label_values import Value, shown_value, shown_values

_UNKNOWN = 254  # marks pixels whose value the data set does not define
_TURNED = (
    "; the image is turned upright as its EXIF orientation says, and the label image seems to have been drawn without: "
    "turn it in the same way, or remove the orientation from the image"
)


class LabelFormat(NamedTuple):
    """Format of the label images of a data set.

    Attributes:
        label_ids: maps pixel values to class indices or ``IGNORE_INDEX``; see :class:`LabelReader`.
        image_name, label_name: patterns for the names of images and label images; see
            :func:`~ccnet.data.reading.file_lists.match_by_name`.
        smoothed: see :class:`LabelReader`.
    """

    label_ids: Mapping[Any, int]
    image_name: str = "*"
    label_name: str = "*"
    smoothed: Collection[str] = ()


class UnknownLabels(ValueError):
    """A label image contains values that the data set does not define.

    Args:
        message: the error message, with the file and the values.
        pixels: the number of pixels of each unknown value.
        total: the number of pixels in the file.
    """

    # torch's loader recreates the error of a worker from its message alone.
    def __init__(self, message: str, pixels: Mapping[Value, int] | None = None, total: int = 0):
        super().__init__(message)
        self.pixels, self.total = pixels or {}, total


class _Run(NamedTuple):
    """Values ``first``, ``first`` + 1, ... that become classes when ``shift`` is added, all modulo 256.

    Adding is ten times as fast as looking up each pixel. Most data sets have such values only: class indices, possibly
    with 255 for ignored pixels, or numbers from 1 with 0 for ignored pixels.
    """

    first: np.uint8
    length: int
    shift: np.uint8


def _longest_run(index: np.ndarray) -> _Run:
    """Return the run of known values that starts at 255, or at 0 if 255 is unknown; ``index`` maps 256 values."""
    first = np.uint8(255 if index[255] != _UNKNOWN else 0)
    values = np.arange(256, dtype=np.uint8) + first
    shifts = index[values] - values
    fits = (shifts == shifts[0]) & (index[values] != _UNKNOWN)
    return _Run(first, 256 if fits.all() else int(fits.argmin()), shifts[0])


class LabelReader:
    """Reads label images and maps their pixel values to class indices.

    Args:
        label_ids: maps pixel values to class indices or ``IGNORE_INDEX``. The values are either numbers below 2^16, for
            grey and palette images, or RGB triples, for colour images.
        smoothed: the names of label images in which some outlines are known to be smoothed; pixels of other values are
            ignored in them.

    Raises:
        ValueError: a class index is above 253.
    """

    def __init__(
        self,
        label_ids: Mapping[int, int] | Mapping[tuple[int, int, int], int] | Mapping[Value, int],
        smoothed: Collection[str] = (),
    ):
        if too_high := [index for index in label_ids.values() if index >= _UNKNOWN and index != IGNORE_INDEX]:
            raise ValueError(
                f"a value of the label images is mapped to class {max(too_high)}: classes are numbered from 0 to "
                f"{_UNKNOWN - 1}, because labels are uint8 and {IGNORE_INDEX} is ignored; merge classes"
            )
        self.label_ids, self.smoothed = label_ids, smoothed
        values = np.array(list(label_ids))
        self.colour = values.ndim == 2
        self._index = np.full(2 ** (24 if self.colour else 16), _UNKNOWN, dtype=np.uint8)
        self._index[_code(values) if self.colour else values] = list(label_ids.values())
        self._run = _longest_run(self._index[:256])

    def __call__(self, path: Path) -> Tensor:
        """Read a label image as class indices, uint8 (H, W).

        Raises:
            FileNotFoundError, UnreadableImage, ImageTooLarge: see :func:`~ccnet.data.reading.image_files.read_image`.
            UnknownLabels: the file contains values that are not in ``label_ids``, or colours instead of numbers.
            ValueError: the file contains fractions or NaN.
        """
        codes = self._codes(path)
        if codes.dtype == np.uint8:
            if (codes - self._run.first).max() < self._run.length:
                return torch.from_numpy(codes + self._run.shift)
            table = self._index[:256].tobytes()  # bytes.translate is several times faster than fancy indexing
            labels = np.frombuffer(bytearray(codes).translate(table), dtype=np.uint8).reshape(codes.shape)
        else:
            inside = codes.min() >= 0 and codes.max() < len(self._index)
            labels = self._index.take(codes) if inside else np.full(codes.shape, _UNKNOWN, dtype=np.uint8)
        unknown = labels == _UNKNOWN
        if unknown.any():
            if path.name not in self.smoothed:
                raise self._unknown(path, codes)
            labels[unknown] = IGNORE_INDEX
        return torch.from_numpy(labels)

    def _codes(self, path: Path) -> np.ndarray:
        """Return the value of each pixel (H, W), with colours encoded as one number."""
        image, samples = open_upright(path, fast_mode="RGB" if self.colour else "L")
        if isinstance(image, np.ndarray):
            return _code(image) if self.colour else image
        if samples.lossy:
            raise ValueError(f"{path} is compressed with loss. {LOSSY}")
        if image.format in ("TIFF", "GIF") and len(pages := pages_of(path)) > 1:
            raise ValueError(
                f"{path} has {len(pages)} pages, but a label image must have one: save each page, with its image, as a "
                "file of its own; a page per class has to be combined into class numbers"
            )
        if samples.bits > 8 and not _holds_numbers(image):  # Pillow drops their lower 8 bits, and thus small numbers
            raise ValueError(
                f"{path} has {samples.bits}-bit colours (mode {image.mode}): save label images with 8 bits"
            )
        if image.mode in ("LA", "RGBA"):
            _check_transparency(path, np.asarray(image))
        if self.colour:
            image.info.pop("transparency", None)  # Pillow warns about it
            return _code(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))
        if image.format == "GIF":  # programs that save a GIF renumber its palette, so the indices mean nothing
            return _grey(image, path)
        if samples.white_is_zero:
            raise ValueError(
                f"{path} is a TIFF in which 0 means white: programs disagree on whether its values are inverted, so "
                "save it as an 8-bit PNG, or as a TIFF in which 0 means black"
            )
        if samples.bits < 8 and image.mode in ("1", "L"):
            return self._few_bits(image, samples.bits)
        if image.mode == "P":
            return self._indices_or_greys(path, image)
        return _whole(grey_values(image, samples), path) if _holds_numbers(image) else _grey(image, path)

    def _few_bits(self, image: Image.Image, bits: int) -> np.ndarray:
        """Return the numbers in an image of fewer than 8 bits, which Pillow scales to 0 and up to 255.

        Programs that save masks of 0 and 255, or of 0, 85, 170 and 255, with 1 or 2 bits turn these values into 0 and
        1, or 0 to 3. The values of the classes show which of the two are meant.
        """
        highest = 2**bits - 1
        numbers = np.asarray(image).astype(np.uint8) * (255 if bits == 1 else 1) // (255 // highest)
        meant = 1 if any(number in self.label_ids for number in range(1, highest + 1)) else 255 // highest
        return numbers * np.uint8(meant)

    def _indices_or_greys(self, path: Path, image: Image.Image) -> np.ndarray:
        """Return the indices of a palette image, or its grey values if these are the class numbers.

        Some encoders save a grey image of few values with a palette of these values, which renumbers them.

        Raises:
            ValueError: both are class numbers, but they differ.
        """
        palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        if (palette != palette[:, :1]).any():  # the usual palette, of class colours: counting the indices takes time
            return np.asarray(image)
        used = [index for index, number in enumerate(image.histogram()) if number]
        if used[-1] >= len(palette):
            return np.asarray(image)
        greys = palette[used, 0].tolist()
        # Black and white are usually not values, but show the classes 0 and 1, also where 255 is the value to ignore.
        ignored = IGNORE_INDEX if {0, 255}.issuperset(greys) else None
        numbers = {value for value, label in self.label_ids.items() if label != ignored}
        if greys == used or not numbers.issuperset(greys):
            return np.asarray(image)
        if self.label_ids.keys() >= set(used):
            index, grey = next(pair for pair in zip(used, greys, strict=True) if pair[0] != pair[1])
            raise ValueError(
                f"{path} has a palette in which the number {index} is shown as grey {grey}, and both are values of "
                "classes: save it as a greyscale image without a palette"
            )
        return palette[np.asarray(image), 0]

    def _unknown(self, path: Path, codes: np.ndarray) -> UnknownLabels:
        """Return the error for a file with unknown values, listing them."""
        values, counts = np.unique(codes, return_counts=True)
        pixels = dict(zip(map(self._value, values.tolist()), counts.tolist(), strict=True))
        bad = {value: count for value, count in pixels.items() if value not in self.label_ids}
        allowed = "" if self.colour else f" ({shown_values(self.label_ids)})"
        return UnknownLabels(
            f"{path} contains unknown label values: {shown_values(bad)}; this data set defines {len(self.label_ids)} "
            f"values{allowed}: correct the file, or the class list of the data set",
            bad,
            codes.size,
        )

    def _value(self, code: int) -> Value:
        return _colour(code) if self.colour else code


def check_label_size(label: Path, label_size: Sequence[int], image: Path, size: Sequence[int], channels: int) -> None:
    """Raise ValueError unless a label image has the size of its image.

    Args:
        label: the label image, for the message.
        label_size: its size (H, W).
        image: the image; the message says if it is turned upright and the label image is not.
        size: its size (H, W) as read.
        channels: the number of channels with which it was read.
    """
    if tuple(label_size) == tuple(size):
        return
    turned = tuple(label_size) == (size[1], size[0]) and orientation(image, channels) != 1
    raise ValueError(
        f"{label} has {label_size[1]}x{label_size[0]} pixels and {image} {size[1]}x{size[0]}: a label image must be "
        f"the same size as its image{_TURNED if turned else ''}"
    )


def _check_transparency(path: Path, pixels: np.ndarray) -> None:
    """Raise ValueError if transparent pixels have a value other than 0, which viewers would not show.

    If all pixels are transparent, as some simulators write them, the program did not mean to hide any.
    """
    alpha = pixels[..., -1]
    hidden = pixels[alpha == 0][:, :-1]
    if hidden.any() and alpha.any():
        value = shown_value(tuple(hidden[hidden.any(axis=1)][0].tolist()))
        raise ValueError(
            f"{path} has transparent pixels with the value {value}, so that it is unclear which class they have: save "
            "it without transparency, with the background filled in"
        )


def _holds_numbers(image: Image.Image) -> bool:
    """Return whether a decoded image has one number per pixel."""
    return image.mode in ("L", "P", "1", "I", "F") or image.mode.startswith("I;16")


def _whole(values: np.ndarray, path: Path) -> np.ndarray:
    """Convert floating-point values to integers; raise ValueError if any of them are fractions."""
    if values.dtype.kind != "f":
        return values
    whole = np.nan_to_num(values, nan=0.5).astype(np.int64)
    if (whole != values).any():
        raise ValueError(f"{path} contains fractions or NaN: a label image must hold one class number per pixel")
    return whole


def _grey(image: Image.Image, path: Path) -> np.ndarray:
    """Return one channel of a colour image; raise UnknownLabels unless all of its channels are equal."""
    pixels = np.asarray(image.convert("RGB"))
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    codes, numbers = np.unique(_code(pixels), return_counts=True)
    colours = dict(zip(map(_colour, codes.tolist()), numbers.tolist(), strict=True))
    raise UnknownLabels(
        f"{path} is a colour image (mode {image.mode}), but a label image must hold one class number per pixel: map "
        f"its colours ({shown_values(colours)}) to classes with dataset.values, an option of dataset=folder",
        colours,
        sum(colours.values()),
    )


def _code(colours: np.ndarray) -> np.ndarray:
    """Encode RGB (..., 3) as one number (...)."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _colour(code: int) -> Value:
    """Decode a number from :func:`_code` into an RGB triple."""
    return code >> 16, code >> 8 & 255, code & 255
