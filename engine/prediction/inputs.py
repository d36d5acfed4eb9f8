"""Find the images to predict, name their output files, and record the images that are skipped."""

import errno
import glob
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

from ...data.reading.file_lists import IMAGE_SUFFIXES, find_files
from ..runtime.atomic_files import given_path
from ..runtime.run_folder import refuse_file

Result = TypeVar("Result")

# The endings of every file that a prediction can write for an image.
_ENDINGS = (
    ".png", "_overlay.png", "_attention.png", "_probabilities.npz", "_probabilities", "_logits.npz", ".json"
)  # fmt: skip
COMPARISON = "comparison.png"
_DIGITS = 4  # minimum number of digits of a frame number in a name
_FRAME = re.compile(rf"(.+)_[0-9]{{{_DIGITS},}}", re.DOTALL)
_FRAME_FILE = re.compile(f"{_FRAME.pattern}(?:{'|'.join(map(re.escape, _ENDINGS))})", re.DOTALL)
_LISTED = 50  # maximum number of skipped images in a message
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors of the output folder, which no other image avoids
_VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


class InputImage(NamedTuple):
    """An image to predict.

    Attributes:
        path: the file.
        name: its path relative to the input folder, without suffix; the output files are named after it.
        frame: the index of the frame or page in a file with several; None for any other file.
    """

    path: Path
    name: PurePath
    frame: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.frame is None else f"{self.path}, frame {self.frame + 1}"


def find_inputs(sources: Sequence[Any], output: Path) -> list[InputImage]:
    """Return the image files that a list of files, folders and glob patterns specifies, without duplicates.

    They are in the order of the list, and those in a folder or pattern in that of :func:`_frame_order`.

    Args:
        sources: image files, folders (searched recursively) and patterns such as "frames/*/left_*.png". Hidden files
            are skipped.
        output: the output folder; if it is inside an input folder, its files are not treated as inputs.

    Raises:
        FileNotFoundError: a source contains no images.
    """
    images: dict[str, InputImage] = {}
    inside = output.resolve()
    for source in map(given_path, sources):
        named = source.is_file() or source.resolve() == inside  # see check_outputs
        for image in _images_of(source):
            parts = image.path.parts  # resolving a path accesses the disk: only one that may be in `output`
            if not named and {output.name, inside.name} & {*parts} and inside in image.path.resolve().parents:
                continue
            images.setdefault(os.path.abspath(image.path), image)
    if not images:
        raise FileNotFoundError(f"input={', '.join(map(str, sources))} contains no images outside output={output}")
    return [*images.values()]


def with_frames(images: Sequence[InputImage], channels: int) -> list[InputImage]:
    """Split each file with several frames or pages into one image per frame: NAME_0001, NAME_0002 and so on.

    Args:
        images: the files.
        channels: the network's number of input channels; a TIFF that stores these as its pages is not split.
    """
    return [frame for image in images for frame in _frames_of(image, channels)]


def check_outputs(images: Sequence[InputImage], output: Path, endings: Sequence[str], reserved: Sequence[str]) -> None:
    """Raise ValueError if two images would write the same file, an image could be overwritten, or `output` is a file.

    Args:
        images: the images.
        output: the output folder.
        endings: those of the output files of an image, such as ".png" and "_overlay.png".
        reserved: names of other files in the output folder, such as "comparison.png".
    """
    refuse_file(output, "output")
    for folder, parent in {(output / image.name.parent, image.path.parent) for image in images}:
        if folder.resolve() == parent.resolve():
            raise ValueError(f"output={output} is the folder of the input, whose images a mask could overwrite")
    written: dict[str, InputImage | str] = {name: "another output" for name in reserved}
    for image in images:
        for ending in endings:
            file = f"{image.name}{ending}"
            if file in written:
                raise ValueError(
                    f"{written[file]} and {image} would both write {output / file}: rename one of them, or "
                    "predict them with different output folders"
                )
            written[file] = image


def earlier_files(
    images: Sequence[InputImage],
    output: Path,
    endings: Sequence[str],
    skipped: Collection[InputImage] = (),
    reserved: Sequence[str] = (),
) -> list[Path]:
    """Return what an earlier prediction of these images left in the output folder and this one has not written.

    These are files of the images, files of further frames, which the input has lost since, and a comparison.

    Args:
        images, output, endings, reserved: see :func:`check_outputs`.
        skipped: those of the images for which nothing was written.
    """
    written = {f"{image.name}{ending}" for image in images if image not in skipped for ending in endings}
    written |= {str(folder) for image in images for folder in image.name.parents} | {*reserved}
    names = [f"{image.name}{ending}" for image in images for ending in _ENDINGS]
    names += [*_frame_files(images, output), COMPARISON]
    return [output / name for name in dict.fromkeys(names) if name not in written and (output / name).exists()]


def _frame_files(images: Sequence[InputImage], output: Path) -> list[str]:
    """Return the names of the output files of all frames, past and present, of the images that are frames of a file."""
    numbered = (_FRAME.fullmatch(str(image.name)) for image in images if image.frame is not None)
    stems = {match[1] for match in numbered if match}
    folders = {output / PurePath(stem).parent for stem in stems}
    names = sorted(str(path.relative_to(output)) for folder in folders for path in folder.glob("*"))
    return [name for name in names if (match := _FRAME_FILE.fullmatch(name)) and match[1] in stems]


def frames_before(images: Sequence[InputImage], index: int, number: int) -> list[InputImage]:
    """Return up to ``number`` images that precede image ``index`` and complete its clip.

    The frames of a clip are in the same file or, if they are files themselves, in the same folder, with names that
    differ only in their numbers.
    """
    frames: list[InputImage] = []
    for image in reversed(images[max(index - number, 0) : index]):
        if _clip_of(image) != _clip_of(images[index]):
            break
        frames.insert(0, image)
    return frames


def _clip_of(image: InputImage) -> Path:
    if image.frame is not None:
        return image.path
    return image.path.with_name(re.sub(r"[0-9]+", "0", image.path.stem))


class SkippedImages:
    """The images that could not be predicted, and why."""

    def __init__(self):
        self._errors: list[tuple[InputImage, Exception]] = []

    def attempt(self, image: InputImage, work: Callable[..., Result], *arguments: Any) -> Result | None:
        """Return the result of a function that reads or predicts an image; if it fails, record why and return None."""
        try:
            return work(*arguments)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno in _UNWRITABLE:
                raise
            self._errors.append((image, error))
            return None

    @property
    def images(self) -> set[InputImage]:
        """The skipped images."""
        return {image for image, _ in self._errors}

    def report(self, total: int) -> None:
        """Raise ValueError if images were skipped; the message lists them.

        Args:
            total: the number of images, including those skipped.
        """
        if total == len(self._errors) == 1:
            image, error = self._errors[0]
            raise ValueError(_message(image, error)) from error
        if self._errors:
            listed = [f"  {_message(image, error)}" for image, error in self._errors[:_LISTED]]
            more = [f"  and {len(self._errors) - _LISTED} more"] if len(self._errors) > _LISTED else []
            raise ValueError("\n".join([f"{len(self._errors)} of {total} images were skipped:", *listed, *more]))


def _images_of(source: Path) -> Iterator[InputImage]:
    if source.is_file() and source.suffix.lower() in _VIDEOS:
        raise ValueError(
            f"input={source} is a video: save its frames as images and predict their folder, as with "
            "mkdir frames && ffmpeg -i VIDEO frames/%06d.png; video=NAME.mp4 joins the overlays again"
        )
    if source.is_file():
        yield InputImage(source, PurePath(source.stem))
        return
    if source.is_dir():
        root, paths = source, find_files(source)
    elif glob.has_magic(str(source)):
        parts = source.parts
        root = Path(*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])
        matched = [Path(match) for match in sorted(glob.glob(str(source), recursive=True))]
        # Skip special files: opening a named pipe would block forever. Keep broken links: reading them raises an error.
        files = (path for path in matched if path.is_file() or not path.exists())
        paths = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    else:
        is_url = source.parts[:1] in (("http:",), ("https:",))
        why = ": download it first" if is_url else "" if source.exists() else ": there is no such file or folder"
        raise FileNotFoundError(f"input={source} is neither an image nor a folder or pattern of images{why}")
    if not paths:
        raise FileNotFoundError(f"input={source} contains no images ({', '.join(IMAGE_SUFFIXES)})")
    for path in sorted(paths, key=_frame_order):
        yield InputImage(path, PurePath(path.relative_to(root).with_suffix("")))


def _frame_order(path: Path) -> tuple[list[list[str | int]], Path]:
    """Return a sorting key that compares numbers in names as numbers: frame_2 comes before frame_10, as in a video."""
    parts = [re.split(r"([0-9]+)", part) for part in path.parts]
    return [[int(text) if place % 2 else text for place, text in enumerate(texts)] for texts in parts], path


def _frames_of(image: InputImage, channels: int) -> list[InputImage]:
    from ...data.reading.frames import frames_of  # imports torch

    frames = frames_of(image.path, channels)
    if len(frames) == 1:
        return [image._replace(frame=frames[0] or None)]
    digits = max(len(str(frames[-1] + 1)), _DIGITS)
    return [
        image._replace(name=image.name.with_name(f"{image.name.name}_{frame + 1:0{digits}}"), frame=frame)
        for frame in frames
    ]


def _message(image: InputImage, error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, RuntimeError):
        text = text.splitlines()[0]
    return text if str(image) in text else f"{image}: {text}"
