"""Pairs of picture files and label files: what every dataset on disk shares."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from . import IGNORE_INDEX
from .image_files import IMAGE_SUFFIXES, LabelReader, read_image


class ImagePairs(Dataset):
    """Pictures and their label images.

    Args:
        pairs: (picture, label image) paths; None instead of a label image where there is none, as in a test split.
        classes: K names, in label order.
        palette: K RGB triples.
        label_ids: of :class:`data.pictures.LabelReader`. None if the file's values are class indices already
            (with 255 ignored).
        result_values: the K values that a benchmark's result files hold; the class indices if not given.
        transform: of (tv_tensors.Image uint8 (3, H, W), tv_tensors.Mask uint8 (H, W)) to the pair returned.
    """

    ignore_index = IGNORE_INDEX

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path | None]],
        *,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        label_ids: Mapping | None = None,
        result_values: Sequence[int] | None = None,
    ):
        self.pairs = list(pairs)
        self.classes = tuple(classes)
        self.palette = tuple(tuple(colour) for colour in palette)
        self.transform = transform
        if label_ids is None:
            label_ids = {index: index for index in range(len(self.classes))} | {IGNORE_INDEX: IGNORE_INDEX}
        self.result_values = tuple(result_values or range(len(self.classes)))
        self._read_label = LabelReader(label_ids)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(*self.read(index))

    @property
    def has_labels(self) -> bool:
        """Whether every picture has a label image."""
        return all(label is not None for _, label in self.pairs)

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Picture and labels as they lie on the disk, before the transform; no labels read as ignored everywhere."""
        image_path, label_path = self.pairs[index]
        image = read_image(image_path)
        if label_path is None:
            label = torch.full(image.shape[1:], IGNORE_INDEX, dtype=torch.uint8)
        else:
            label = self._read_label(label_path)
        if image.shape[1:] != label.shape:
            raise ValueError(
                f"{label_path} has {label.shape[1]}x{label.shape[0]} pixels and {image_path} "
                f"{image.shape[2]}x{image.shape[1]}: a label image must have the size of its picture"
            )
        return tv_tensors.Image(image), tv_tensors.Mask(label)

    def name(self, index: int) -> str:
        """File name of the picture, without suffix."""
        return self.pairs[index][0].stem


def find_root(root: str | Path | None, name: str, layout: str, source: str, required: Sequence[str]) -> Path:
    """Return ``root`` if the ``required`` files and folders are in it; otherwise say what was expected.

    Args:
        root: what the user gave as ``dataset.root``.
        name: of the data set.
        layout: its tree, for the message.
        source: where it is to be had.
        required: relative paths.
    """
    told = f"The layout of {name}:\n\n{layout}\n\nWhere to get it: {source}"
    if root is None:
        raise FileNotFoundError(f"dataset.root is not set: give the folder of {name} with dataset.root=DIR.\n{told}")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"dataset.root={root} is not a folder: {name} was expected there.\n{told}")
    missing = [part for part in required if not (root / part).exists()]
    if missing:
        raise FileNotFoundError(f"dataset.root={root} lacks {', '.join(missing)} of {name}.\n{told}")
    return root


def match_by_stem(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Pair the pictures in one folder with the label images in another by file name without suffix."""
    pictures = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not pictures:
        raise FileNotFoundError(f"{images} holds no pictures ({', '.join(IMAGE_SUFFIXES)})")
    found = {path.relative_to(labels).with_suffix(""): path for path in labels.rglob("*.png")}
    pairs = [(path, found.get(path.relative_to(images).with_suffix(""))) for path in pictures]
    without = [path for path, label in pairs if label is None]
    if without:
        raise FileNotFoundError(
            f"{len(without)} of {len(pairs)} pictures have no label image of the same name (.png) in {labels}: "
            f"{_first(without)}"
        )
    return pairs


def read_classes(name: str) -> list[dict]:
    """The entries of ``data/sets/<name>.json``, one per class: "name", "colour" and what the data set adds."""
    return json.loads((Path(__file__).parent / "sets" / f"{name}.json").read_text())


def read_list(path: Path) -> list[tuple[str, list[str]]]:
    """(place for a message, words) of each line of a text file that is not empty, such as a list of picture names."""
    try:
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from error
    listed = [(f"{path}, line {number}", line.split()) for number, line in lines if line.strip()]
    if not listed:
        raise ValueError(f"{path} lists no pictures")
    return listed


def inside(root: Path, name: str, source: str) -> Path:
    """``root / name``, for a name out of a list.

    The name's text alone decides: a list may be a stranger's, while a link that lies in ``root`` is the user's own.

    Args:
        root: the data set's folder, or one in it.
        name: a relative path.
        source: the list and the line, for the message.

    Raises:
        ValueError: the name leads out of ``root``.
    """
    path = PurePath(name)
    if path.is_absolute() or path.drive or ".." in path.parts:
        raise ValueError(f"{source}: {name!r} leads out of {root}: name files in that folder, by relative paths")
    return root / path


def check_files(pairs: Sequence[tuple[Path, Path | None]], source: str) -> list[tuple[Path, Path | None]]:
    """``pairs``, or FileNotFoundError with the names of those that are not there."""
    missing = [path for pair in pairs for path in pair if path is not None and not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{source} names {len(missing)} files that are missing: {_first(missing)}")
    return list(pairs)


def _first(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:5])) + (", ..." if len(paths) > 5 else "")
