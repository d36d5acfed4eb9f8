"""Paths of images and labels: read from lists, found in folders, matched by name and checked for existence."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".npy")
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")  # formats that store values unchanged
_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
LOSSY = "JPEG and WebP change the values of pixels: save the masks as PNG from where they were drawn"


def read_list(path: Path) -> list[tuple[str, str]]:
    """Return a pair (place, line) for each non-empty line of a text file, such as a list of image names.

    The place is "FILE, line NUMBER", for error messages.

    Raises:
        ValueError: the file is empty or not UTF-8.
    """
    lines = enumerate(read_lines(path), 1)
    listed = [(f"{path}, line {number}", line.strip()) for number, line in lines if line.strip()]
    if not listed:
        raise ValueError(f"{path} lists no images")
    return listed


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; raise ValueError, naming the file, if it is not UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file, save it as UTF-8: {error}") from error
    return lines


def expanded_path(value: object) -> Path:
    """Return a path that a user has typed, with ``~`` expanded unless the user that it names is unknown.

    ``Path.expanduser`` would raise RuntimeError instead of leaving the path to the check that it exists.
    """
    return Path(os.path.expanduser(str(value)))


def inside(root: Path, name: str, place: str) -> Path:
    """Return ``root / name`` for a name from an untrusted list; raise ValueError if it points outside ``root``.

    The check is purely lexical: symbolic links in ``root`` were created by the user and may point anywhere.

    Args:
        root: the folder of the data set, or a subfolder of it.
        name: a relative path.
        place: the list and line number in which ``name`` is given, for the message.
    """
    path = PurePath(name)
    if not is_inside(path):
        raise ValueError(f"{place}: {name!r} points outside {root}: use relative paths to files in that folder")
    return root / path


def is_inside(path: PurePath) -> bool:
    """Return whether a path is relative and does not leave the folder that it is relative to."""
    return not (path.is_absolute() or path.drive or ".." in path.parts)


def find_files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES, *, pattern: str | None = None) -> list[Path]:
    """Return the files in a folder with one of the suffixes, ignoring case, sorted by path.

    Hidden files and folders, whose names begin with a dot, are skipped: ``._NAME.jpg`` and ``.ipynb_checkpoints`` are
    not the user's images. Without ``pattern``, symbolic links are followed; broken links are included, so that reading
    them reports an error. Named pipes are then skipped, since reading one would block forever.

    Args:
        folder: the folder.
        suffixes: suffixes in lower case, with their dots.
        pattern: a glob pattern relative to the folder; None searches the folder and all of its subfolders.
    """
    paths = _files_below(folder) if pattern is None else folder.glob(pattern)
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in suffixes and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _files_below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, except hidden ones; nothing if there is no such folder.

    ``Path.glob`` neither follows links to folders nor reports unreadable folders.
    """
    if not folder.is_dir():
        return
    status = folder.stat()
    inside = above | {(status.st_dev, status.st_ino)}
    if inside == above:  # a link to a folder that contains it
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files_below(folder / entry.name, inside)
            elif entry.is_file() or not os.path.exists(entry.path):
                yield folder / entry.name


class Matched(NamedTuple):
    """The files in a folder of images and in one of label images.

    Attributes:
        pairs: paths of each image and its label image.
        unused: the label images without an image.
    """

    pairs: list[tuple[Path, Path]]
    unused: list[Path]


def match_by_name(
    images: Path, labels: Path, *, image_name: str = "*", label_name: str = "*", skip_unlabelled: bool = False
) -> Matched:
    """Pair the images in one folder with the label images in another, which must have the same subfolders.

    Args:
        images: the folder of the images, searched recursively.
        labels: the folder of the label images, which may be the same folder, or one inside it. If two files in one
            folder have the same name, the label image is the one whose suffix is in ``LABEL_SUFFIXES``.
        image_name, label_name: patterns for the names of an image and of its label image, without suffix. ``*`` stands
            for the part that both have in common, as in "*" and "*_mask", or "image_*" and "mask_*".
        skip_unlabelled: whether to leave out the images without a label image; an error if none has one.

    Raises:
        FileNotFoundError: there are no images, or some have no label image; the message shows the expected and
            the existing files.
        ValueError: a pattern does not contain exactly one ``*``, or two files have the same name without suffix.
    """
    images_by_key, labels_by_key = _files_by_key(images, labels, image_name, label_name)
    if not images_by_key:
        raise FileNotFoundError(f"{images} contains no images {image_name} ({', '.join(IMAGE_SUFFIXES)})")
    without = [key for key in images_by_key if key not in labels_by_key]
    some = len(without) < len(images_by_key)
    if without and not (skip_unlabelled and some):
        expected = labels / without[0].parent / label_name.replace("*", without[0].name)
        label_files = find_files(labels, LABEL_SUFFIXES)
        present = label_files or sorted(_files_below(labels))
        shown = [str(path.relative_to(labels)) for path in present]
        there = [path.relative_to(labels) for path in label_files]
        raise FileNotFoundError(
            f"{len(without)} of {len(images_by_key)} images have no label image in {labels}: "
            f"{images_by_key[without[0]]} needs {expected} ({', '.join(LABEL_SUFFIXES)}); there is "
            f"{_first(shown) or 'nothing'}"
            f"{_suggestion(there, without, label_name, some=some)}"
            f"{'' if label_files or images == labels else _about_lossy(present)}"
        )
    return Matched(
        [(path, labels_by_key[key]) for key, path in images_by_key.items() if key in labels_by_key],
        [path for key, path in labels_by_key.items() if key not in images_by_key],
    )


def without_image(folders: Iterable[tuple[Path, Path]], *, image_name: str = "*", label_name: str = "*") -> list[Path]:
    """Return the label images that :func:`match_by_name` pairs with no image in any of the (images, labels) folders."""
    masks: dict[Path, None] = {}
    used: set[Path] = set()
    for images, labels in folders:
        images_by_key, labels_by_key = _files_by_key(images, labels, image_name, label_name)
        masks |= dict.fromkeys(labels_by_key.values())
        used.update(path for key, path in labels_by_key.items() if key in images_by_key)
    return [path for path in masks if path not in used]


def _files_by_key(
    images: Path, labels: Path, image_name: str, label_name: str
) -> tuple[dict[PurePath, Path], dict[PurePath, Path]]:
    """Return the images and the label images by their keys."""
    label_files = find_files(labels, LABEL_SUFFIXES)
    together = images == labels and (label_name != "*" or image_name == "*")
    if together and image_name == label_name:  # 7.jpg and its label image 7.png
        number = Counter(path.with_suffix("") for path in find_files(images))
        label_files = [path for path in label_files if number[path.with_suffix("")] > 1]
    labels_by_key = _by_key(labels, label_files, label_name, "label images")
    taken = set(labels_by_key.values()) if together else set()
    within = labels != images and labels.is_relative_to(images)  # files in the subfolder of labels are not images
    candidates = (path for path in find_files(images) if not (path in taken or (within and labels in path.parents)))
    images_by_key = _by_key(images, candidates, image_name, "images")
    return images_by_key, labels_by_key


def _by_key(folder: Path, paths: Iterable[Path], name: str, kind: str) -> dict[PurePath, Path]:
    """Return the files that match a pattern, keyed by their relative folder and the part that ``*`` matches."""
    before, after = around_star(name, kind)
    by_key: dict[PurePath, Path] = {}
    for path in paths:
        stem = unicodedata.normalize("NFC", path.stem)
        if len(stem) > len(before) + len(after) and stem.startswith(before) and stem.endswith(after):
            key = composed(path.relative_to(folder).parent / stem[len(before) : len(stem) - len(after)])
            if key in by_key:
                raise ValueError(f"{folder} contains two {kind} of one name: {by_key[key].name} and {path.name}")
            by_key[key] = path
    return by_key


def around_star(name: str, kind: str) -> tuple[str, str]:
    """Return the parts of a pattern for names before and after its ``*``, without the suffix of an image file.

    Args:
        name: the pattern, such as "*_mask" or "*_mask.png".
        kind: what it names, for the message.

    Raises:
        ValueError: the pattern does not contain exactly one ``*``.
    """
    pattern = composed(PurePath(PurePath(name).name))
    stem = pattern.stem if pattern.suffix.lower() in IMAGE_SUFFIXES else pattern.name
    if stem.count("*") != 1:
        raise ValueError(f"the name {name!r} of {kind} must contain one *, the part that an image and its mask share")
    before, after = stem.split("*")
    return before, after


def composed(path: PurePath) -> PurePath:
    """Return a path whose accented letters are single characters: macOS often stores an accent after its letter."""
    return PurePath(unicodedata.normalize("NFC", str(path)))


def _suggestion(there: Sequence[PurePath], without: Sequence[PurePath], label_name: str, *, some: bool) -> str:
    """Suggest what to do about images without a label image.

    Args:
        there: the paths of the label images. In one folder with the images, they may be images as well.
        without: the keys of the images without a label image.
        label_name: the pattern for the names of label images.
        some: whether other images have one. If not, the names of label images may contain those of the images.
    """
    stems = {composed(path.with_suffix("")) for path in there}
    key = without[0]
    if key not in stems and str(key).casefold() in {str(stem).casefold() for stem in stems}:
        return ". Upper and lower case differ: rename the files, so that an image and its mask have the same name"
    if some:
        return ". Add the missing ones or remove these images; with dataset=folder, dataset.lists can name the others"
    patterns = {
        stem.name.replace(key.name, "*", 1) for stem in stems if stem.parent == key.parent and key.name in stem.name
    }

    def share(pattern: str) -> float:
        # In one folder, label images are found among the images, too.
        tried = [key for key in without[:100] if pattern == "*" or not key.match(pattern)]
        return sum(key.parent / pattern.replace("*", key.name) in stems for key in tried) / max(len(tried), 1)

    patterns.discard(label_name)
    best = max(sorted(patterns), key=share, default=None)
    # The masks of other images may contain a name by chance, as 10.png contains that of 1.jpg.
    return f". If these are the masks, set dataset.mask_name='{best}'" if best and share(best) > 0.5 else ""


def _about_lossy(there: Sequence[Path]) -> str:
    """Explain why masks saved as JPEG or WebP are not accepted, if there are any, else return ""."""
    return f". {LOSSY}" if any(path.suffix.lower() in _LOSSY_SUFFIXES for path in there) else ""


def check_files(pairs: Sequence[tuple[Path, Path | None]], source: str) -> list[tuple[Path, Path | None]]:
    """Return ``pairs``; raise FileNotFoundError, naming the missing files, unless all files exist.

    Args:
        pairs: paths of images and label images; the latter may be None.
        source: the list or folder that the pairs come from, for the message.
    """
    missing = [path for pair in pairs for path in pair if path is not None and not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{source}: missing images or label images ({len(missing)}): {_first(missing)}")
    return list(pairs)


def _first(paths: Sequence[str | Path]) -> str:
    return ", ".join(map(str, paths[:5])) + (", ..." if len(paths) > 5 else "")
