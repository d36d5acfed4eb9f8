"""Write frames to a video file."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from ..runtime.atomic_files import replacing

SUFFIXES = (".gif", ".mp4")


def check_video(path: Path) -> None:
    """Raise ValueError if a video with this suffix cannot be written here."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"video={path} ends in {path.suffix!r}: choose one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError:
            raise ValueError(f"video={path} needs PyAV: pip install av, or write a .gif") from None


class Video(ABC):
    """A video that frames of equal size are appended to; see :func:`open_video`."""

    @abstractmethod
    def add(self, frame: np.ndarray) -> None:
        """Append a frame, RGB uint8 (H, W, 3)."""

    @abstractmethod
    def finish(self) -> None:
        """Write all remaining data to the file."""


@contextmanager
def open_video(path: Path, *, fps: float) -> Iterator[Video]:
    """Open a video for writing, as .mp4 (H.264, via PyAV) or .gif.

    The file appears at the end of the ``with`` block, and only if the block succeeds.

    Args:
        path: the file.
        fps: frames per second.
    """
    with replacing(path) as unfinished, ExitStack() as resources:
        video = _Gif(unfinished, fps) if path.suffix.lower() == ".gif" else _Mp4(unfinished, fps, resources)
        yield video
        video.finish()


class _Gif(Video):
    """An animated GIF; all frames stay in memory until the end, because they share one palette."""

    def __init__(self, path: Path, fps: float):
        self._path, self._fps = path, fps
        self._frames: list[Image.Image] = []

    def add(self, frame: np.ndarray) -> None:
        self._frames.append(Image.fromarray(frame))

    def finish(self) -> None:
        palette = self._frames[0].quantize(256)  # with one palette per frame, colours would flicker
        first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self._frames]
        duration = round(1000 / self._fps)  # ms
        first.save(self._path, format="GIF", save_all=True, append_images=others, duration=duration, loop=0)


class _Mp4(Video):
    """An H.264 video; every frame is encoded immediately."""

    def __init__(self, path: Path, fps: float, resources: ExitStack):
        import av

        self._container = resources.enter_context(av.open(str(path), "w", format="mp4"))
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20"}
        self._started = False

    def add(self, frame: np.ndarray) -> None:
        from av import VideoFrame

        even = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]  # yuv420p requires even sides
        if not self._started:
            self._stream.height, self._stream.width = even.shape[:2]
            self._started = True
        self._container.mux(self._stream.encode(VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))

    def finish(self) -> None:
        self._container.mux(self._stream.encode())
