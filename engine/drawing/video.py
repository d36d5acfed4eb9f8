"""Write frames to a video file."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from PIL import Image, ImageOps

from ..runtime.atomic_files import replacing
from .label_images import Palette, beside
from .legend import LegendEntry, column_rows, count_classes, draw_legend, legend_width, most_frequent_first

SUFFIXES = (".gif", ".mp4")
_FASTEST_GIF = 100  # frames per second
_BITS = 5  # bits per channel when counting colours
_SAMPLES = 200_000  # number of pixels from which the palette of a GIF is chosen


def check_video(path: Path, fps: float) -> None:
    """Raise ValueError if a video with this suffix and rate, in frames per second, cannot be written here."""
    most = _FASTEST_GIF if path.suffix.lower() == ".gif" else 1000
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0.01 <= fps <= most:
        raise ValueError(f"fps={fps}: set it to the frames per second of the video, a number from 0.01 to {most}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"video={path} ends in {path.suffix!r}: choose one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError:
            raise ValueError(f"video={path} needs PyAV: pip install av, or write a .gif") from None


class Video(ABC):
    """A video to which frames are appended; see :func:`open_video`.

    Attributes:
        size: (H, W) of the first frame, to which all others are fitted; None until it is added.
        fitted: the number of frames that had a different size.
    """

    def __init__(self):
        self.size: tuple[int, int] | None = None
        self.fitted = 0

    def add(self, frame: np.ndarray, legend: Image.Image | None = None) -> None:
        """Append a frame; a frame of a different size is scaled and centred on black.

        Args:
            frame: RGB uint8 (H, W, 3).
            legend: drawn to the right of the fitted frame; see :class:`VideoLegend`.
        """
        self.size = self.size or (frame.shape[0], frame.shape[1])
        if frame.shape[:2] != self.size:
            self.fitted += 1
            height, width = self.size
            frame = np.array(ImageOps.pad(Image.fromarray(frame), (width, height), color="black"))
        self._append(frame if legend is None else np.array(beside(frame, legend)))

    @abstractmethod
    def _append(self, frame: np.ndarray) -> None:
        """Append a frame of the video's size."""

    @abstractmethod
    def finish(self) -> None:
        """Write all remaining data to the file."""


@contextmanager
def open_video(path: Path, *, fps: float) -> Generator[Video]:
    """Open a video for writing, as .mp4 (H.264, via PyAV) or .gif.

    The file appears at the end of the ``with`` block, and only if the block succeeds.

    Args:
        path: the file.
        fps: frames per second.
    """
    with replacing(path) as unfinished, ExitStack() as resources:
        video = _Gif(unfinished, fps, resources) if path.suffix.lower() == ".gif" else _Mp4(unfinished, fps, resources)
        yield video
        video.finish()


class _Gif(Video):
    """An animated GIF with a single palette, because colours would flicker with one palette per frame.

    The palette must fit all frames, so they are kept on disk until the end.
    """

    def __init__(self, path: Path, fps: float, resources: ExitStack):
        super().__init__()
        self._path, self._fps = path, fps
        self._spool = resources.enter_context(TemporaryFile())  # noqa: SIM115
        self._colours = np.zeros(2 ** (3 * _BITS), dtype=np.int64)  # number of pixels of each colour, over all frames
        self._number, self._shape = 0, (0, 0)  # number of frames, and their (H, W) including the legend

    def _append(self, frame: np.ndarray) -> None:
        self._number, self._shape = self._number + 1, (frame.shape[0], frame.shape[1])
        red, green, blue = np.moveaxis((frame >> (8 - _BITS)).astype(np.int32), -1, 0)
        self._colours += np.bincount((red << 2 * _BITS | green << _BITS | blue).ravel(), minlength=len(self._colours))
        self._spool.write(np.ascontiguousarray(frame).tobytes())

    def finish(self) -> None:
        if not self._number:
            raise ValueError("there are no frames to write")
        palette = self._palette()
        frames = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self._frames(*self._shape))
        # A GIF stores multiples of 10 ms: rounding the times of the frames, not each duration, keeps the mean exact.
        times = [10 * round(100 * index / self._fps) for index in range(self._number + 1)]
        durations = [end - start for start, end in pairwise(times)]
        next(frames).save(self._path, format="GIF", save_all=True, append_images=frames, duration=durations, loop=0)

    def _palette(self) -> Image.Image:
        """Return an image whose palette fits the colours of all frames, with extra weight for rare ones."""
        present = np.flatnonzero(self._colours)
        # Square roots of the counts, so that a class with few pixels in a single frame keeps its colour.
        weights = np.sqrt(self._colours[present])
        pixels = np.repeat(present, np.maximum(weights * (_SAMPLES / weights.sum()), 1).astype(np.int64))
        channels = [(pixels >> _BITS * place & (1 << _BITS) - 1) for place in (2, 1, 0)]
        colours = np.stack(channels, axis=-1) * 255 / ((1 << _BITS) - 1)
        return Image.fromarray(colours.round().astype(np.uint8)[None]).quantize(
            256, method=Image.Quantize.MEDIANCUT, kmeans=1
        )

    def _frames(self, height: int, width: int) -> Iterator[Image.Image]:
        self._spool.seek(0)
        while content := self._spool.read(3 * height * width):
            yield Image.frombytes("RGB", (width, height), content)


class _Mp4(Video):
    """An H.264 video; every frame is encoded immediately."""

    def __init__(self, path: Path, fps: float, resources: ExitStack):
        import av

        super().__init__()
        self._container = resources.enter_context(av.open(str(path), "w", format="mp4"))
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20"}
        self._started = False

    def _append(self, frame: np.ndarray) -> None:
        from av import VideoFrame

        even = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]  # yuv420p requires even sides
        if not self._started:
            self._stream.height, self._stream.width = even.shape[:2]
            self._started = True
        self._container.mux(self._stream.encode(VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))

    def finish(self) -> None:
        self._container.mux(self._stream.encode())


class VideoLegend:
    """A legend beside the frames of a video that lists the classes seen so far.

    Classes keep their lines, so that the legend does not jump; once it is full, a new class takes the line of the class
    that has been absent for longest. The first frame determines the legend's size.

    Args:
        classes, palette: the names and colours of the K classes.
    """

    def __init__(self, classes: Sequence[str], palette: Palette):
        self._lines = [LegendEntry(name, colour) for name, colour in zip(classes, palette, strict=True)]
        self._shown: list[int] = []
        self._last_seen: dict[int, int] = {}  # the number of the latest frame with each class
        self._number = 0
        self._size: Sequence[int] | None = None

    def of(self, labels: np.ndarray) -> Image.Image:
        """Return the legend of the next frame, as tall as the first one; `labels` are its class indices (H, W)."""
        self._size = size = self._size or labels.shape
        present = [index for index in most_frequent_first(count_classes(labels)) if index < len(self._lines)]
        self._last_seen |= dict.fromkeys(present, self._number)
        self._number += 1
        for index in [index for index in present if index not in self._shown]:
            absent = [line for line in self._shown if line not in present]
            if len(self._shown) < column_rows(size):
                self._shown.append(index)
            elif absent:
                self._shown[self._shown.index(min(absent, key=self._last_seen.__getitem__))] = index
        shown = [self._lines[index] for index in (*self._shown, *(i for i in present if i not in self._shown))]
        canvas = draw_legend(shown, size, width=legend_width([line.text for line in self._lines], size))
        return canvas.crop((0, 0, canvas.width, size[0]))
