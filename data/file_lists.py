"""Paths of images and labels: read from lists, matched by name, and checked for existence."""

from collections.abc import Sequence
from pathlib import Path, PurePath

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def read_list(path: Path) -> list[tuple[str, list[str]]]:
    """Return (place, words) for each non-empty line of a text file, such as a list of image names.

    The place is "FILE, line NUMBER", for error messages.
    """
    try:
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file: {error}") from error
    listed = [(f"{path}, line {number}", line.split()) for number, line in lines if line.strip()]
    if not listed:
        raise ValueError(f"{path} lists no images")
    return listed


def inside(root: Path, name: str, place: str) -> Path:
    """Return ``root / name`` for a name from an untrusted list; raise ValueError if it points outside ``root``.

    The check is purely lexical: symbolic links in ``root`` are the user's own and may point anywhere.

    Args:
        root: the folder of the data set, or a subfolder.
        name: a relative path.
        place: the list and the line number, for the message.
    """
    path = PurePath(name)
    if path.is_absolute() or path.drive or ".." in path.parts:
        raise ValueError(f"{place}: {name!r} points outside {root}: use relative paths to files in that folder")
    return root / path


def match_by_stem(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Pair each image in one folder with the label image in another that has the same name without suffix.

    Raises:
        FileNotFoundError: there are no images, or some have no label image.
    """
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{images} contains no images ({', '.join(IMAGE_SUFFIXES)})")
    found = {path.relative_to(labels).with_suffix(""): path for path in labels.rglob("*.png")}
    stems = [path.relative_to(images).with_suffix("") for path in paths]
    without = [path for path, stem in zip(paths, stems, strict=True) if stem not in found]
    if without:
        raise FileNotFoundError(
            f"{len(without)} of {len(paths)} images have no label image of the same name (.png) in {labels}: "
            f"{_first(without)}"
        )
    return [(path, found[stem]) for path, stem in zip(paths, stems, strict=True)]


def check_files(pairs: Sequence[tuple[Path, Path | None]], source: str) -> list[tuple[Path, Path | None]]:
    """Return ``pairs``; raise FileNotFoundError, naming the missing files, unless all files exist.

    Args:
        source: the list or folder that the pairs come from, for the message.
    """
    missing = [path for pair in pairs for path in pair if path is not None and not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{source}: missing images or label images ({len(missing)}): {_first(missing)}")
    return list(pairs)


def _first(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:5])) + (", ..." if len(paths) > 5 else "")
