"""Label images, whose pixels hold class numbers or colours."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .image_files import GREY_PNG, decode_png, open_upright

_UNKNOWN = 254  # marks pixels whose value is not a label of the data set


class LabelReader:
    """Reads label images and maps their pixel values to class indices.

    Args:
        label_ids: maps pixel values to class indices or ``IGNORE_INDEX``. The values are either numbers, for grey or
            palette images of up to 16 bits, or RGB triples, for colour images.
    """

    def __init__(self, label_ids: Mapping[int, int] | Mapping[tuple[int, int, int], int]):
        self.values = list(label_ids)
        values = np.array(self.values)
        self.colour = values.ndim == 2
        self._index = np.full(2 ** (24 if self.colour else 16), _UNKNOWN, dtype=np.uint8)
        self._index[_code(values) if self.colour else values] = list(label_ids.values())

    def __call__(self, path: Path) -> Tensor:
        """Return the labels in a file, uint8 (H, W).

        Raises:
            FileNotFoundError, UnreadableImage, ImageTooLarge: see :func:`~ccnet.data.image_files.read_image`.
            ValueError: the file contains a value that is not in ``label_ids``, or colours instead of numbers.
        """
        raw = self._read(path)
        codes = _code(raw) if self.colour else raw
        if codes.dtype == bool:
            codes = codes.astype(np.uint8)  # Pillow stores True as the byte 255
        if codes.dtype == np.uint8:  # bytes.translate is several times faster than fancy indexing
            table = self._index[:256].tobytes()
            labels = np.frombuffer(bytearray(codes.tobytes().translate(table)), dtype=np.uint8).reshape(codes.shape)
        else:
            inside = codes.min() >= 0 and codes.max() < len(self._index)
            labels = self._index.take(codes) if inside else np.full(codes.shape, _UNKNOWN, dtype=np.uint8)
        if (labels == _UNKNOWN).any():
            raise ValueError(self._unknown(path, raw))
        return torch.from_numpy(labels)

    def _read(self, path: Path) -> np.ndarray:
        if not self.colour and (grey := decode_png(path, GREY_PNG)) is not None:
            return grey[..., 0]
        image = open_upright(path)
        if self.colour:
            return np.asarray(image.convert("RGB"))
        if image.mode not in ("L", "P", "1", "I", "I;16"):
            raise ValueError(
                f"{path} is a colour image (mode {image.mode}): a label image must hold one class number per pixel"
            )
        return np.asarray(image)

    def _unknown(self, path: Path, raw: np.ndarray) -> str:
        """Return an error message that lists the unknown values in the file."""
        found = np.unique(raw.reshape(-1, 3), axis=0) if self.colour else np.unique(raw)
        found = [tuple(value) if self.colour else value for value in found.tolist()]
        known = set(self.values)
        bad = [value for value in found if value not in known]
        listed = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        allowed = "" if self.colour else f" ({_ranges(np.array(sorted(known)))})"
        return (
            f"{path} contains unknown label values: {listed}; this data set defines {len(known)} values{allowed}: "
            "correct the file, or the class list of the data set"
        )


def _code(colours: np.ndarray) -> np.ndarray:
    """Encode RGB (..., 3) as one number (...)."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _ranges(values: np.ndarray) -> str:
    """Format sorted numbers as "0 to 10, 255"."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
