"""Frames into a video file."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ..runtime.atomic_files import replacing

SUFFIXES = (".gif", ".mp4")


def check_video(path: Path) -> None:
    """Raise ValueError if this path cannot be written here."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"video={path} ends in {path.suffix!r}: choose one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError:
            raise ValueError(f"video={path} needs PyAV: pip install av, or write a .gif") from None


def save_video(path: Path, frames: Iterable[np.ndarray], *, fps: float) -> None:
    """Write RGB uint8 (H, W, 3) frames of one size as .mp4 (H.264, by PyAV) or .gif.

    Args:
        path: of the file.
        frames: one after the other; mp4 keeps none of them in memory.
        fps: frames per second.
    """
    if path.suffix.lower() == ".gif":
        # One palette for all frames: with one for each, colours flicker.
        pictures = [Image.fromarray(frame) for frame in frames]
        palette = pictures[0].quantize(256)
        first, *others = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
        with replacing(path) as unfinished:
            first.save(
                unfinished, format="GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0
            )
        return
    from fractions import Fraction

    import av

    with replacing(path) as unfinished, av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20"}
        for number, frame in enumerate(frames):
            even = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]  # yuv420p has even sides
            if not number:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
        container.mux(stream.encode())
