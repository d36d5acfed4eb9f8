"""Read animations and multi-page files frame by frame."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from torch import Tensor

from .bands import is_array
from .grey_levels import sample_format
from .image_files import (
    FORMATS,
    exif_orientation,
    in_channels,
    loaded_upright,
    orientation,
    pillow_image,
    read_image,
    reading,
)
from .size_limit import check_size

_SINGLE = (b"\xff\xd8", b"BM")  # the first bytes of JPEG and BMP files, which contain a single image
# TIFF tag, and its bits that mark a page as a smaller copy, or as the transparency, of another.
_SUBFILE_TYPE, _REDUCED, _TRANSPARENCY = 254, 1, 4


def frames_of(path: Path, channels: int = 3) -> list[int]:
    """Return the indices of the frames or pages in an image file; see :func:`pages_of`.

    Files whose pages :func:`~ccnet.data.reading.image_files.read_image` reads as the channels of one image count as one
    frame.
    """
    return [0] if is_array(path, channels) else pages_of(path)


def pages_of(path: Path) -> list[int]:
    """Return the indices of the pages or frames that are stored in a file, up to the first one that cannot be read.

    Smaller copies of a page, as in pyramidal TIFFs, and its transparency, which GDAL stores as a page, are omitted.
    Files that are not images count as one page.
    """
    with suppress(OSError, ValueError), open(path, "rb") as file:
        if file.read(2) not in _SINGLE:
            with reading(path), Image.open(file, formats=FORMATS) as image:
                return [*_frames(image)] or [0]
    return [0]


def _frames(image: ImageFile) -> Iterator[int]:
    if image.format != "TIFF":
        try:
            yield from range(getattr(image, "n_frames", 1))
            return
        except Exception:  # a frame is damaged: find out which one
            image.seek(0)
    for index in count():
        try:
            image.seek(index)
        except EOFError:
            return
        except Exception:
            yield index
            return
        if not getattr(image, "tag_v2", {}).get(_SUBFILE_TYPE, 0) & (_REDUCED | _TRANSPARENCY):
            yield index


class FrameReader:
    """Reads images in turn, and the frames of an animation from a file that is kept open.

    Each frame of an animation builds on the previous ones, so reopening the file for every frame would take quadratic
    time.

    Args:
        value_range, channels: see :func:`~ccnet.data.reading.image_files.read_image`.
        keep: the number of recent images to keep in memory, for overlapping clips, which share frames.
    """

    def __init__(self, value_range: Sequence[float] | None = None, *, channels: int = 3, keep: int = 0):
        self.value_range, self.channels = value_range, channels
        self._recent: deque[tuple[tuple[Path, int | None], tuple[Tensor, int]]] = deque(maxlen=keep)
        self._file: tuple[Path, ImageFile] | None = None

    def __call__(self, path: Path, frame: int | None = None) -> tuple[Tensor, int]:
        """Return the upright image, uint8 (C, H, W), and the EXIF orientation of its file.

        Args:
            path: the file.
            frame: the index of the frame; None for a file with a single frame.

        Raises:
            FileNotFoundError, UnreadableImage, ImageTooLarge, ValueError: see
                :func:`~ccnet.data.reading.image_files.read_image`.
        """
        for key, result in self._recent:
            if key == (path, frame):
                return result
        if frame is None:
            result = read_image(path, self.value_range, self.channels), orientation(path, self.channels)
        else:
            result = self._read(path, frame)
        self._recent.append(((path, frame), result))
        return result

    def _read(self, path: Path, frame: int) -> tuple[Tensor, int]:
        subject = f"{path}, frame {frame + 1}"
        with reading(subject):
            image = self._opened(path, frame)
            image.seek(frame)
            check_size(image.height, image.width, subject)
            samples, turn = sample_format(image), exif_orientation(image)
            upright = loaded_upright(image).copy()  # later frames build on the original
        pixels = in_channels(upright, samples, self.value_range, self.channels, path)
        return torch.from_numpy(pixels).permute(2, 0, 1), turn

    def _opened(self, path: Path, frame: int) -> ImageFile:
        """Return the open file, reopened for an earlier frame: Pillow cannot rewind some animated PNGs."""
        if self._file is None or self._file[0] != path or self._file[1].tell() > frame:
            self.close()
            self._file = path, pillow_image(path)
        return self._file[1]

    def close(self) -> None:
        """Close the open file, if any."""
        if self._file:
            self._file[1].close()
            self._file = None
