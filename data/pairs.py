"""Pairs of picture files and label files: what every dataset on disk shares."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from data import IGNORE_INDEX

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class ImagePairs(Dataset):
    """Pictures and their label images.

    Args:
        pairs: (picture, label image) paths.
        classes: K names, in label order.
        palette: K RGB triples.
        label_ids: value in the label file -> class index or ``IGNORE_INDEX``; every other value is an error.
            None if the file's values are class indices already (with 255 ignored).
        transform: of (tv_tensors.Image uint8 (3, H, W), tv_tensors.Mask int64 (H, W)) to the pair returned.
    """

    ignore_index = IGNORE_INDEX

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        *,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        label_ids: Mapping[int, int] | None = None,
    ):
        self.pairs = list(pairs)
        self.classes = tuple(classes)
        self.palette = tuple(tuple(colour) for colour in palette)
        self.transform = transform
        if label_ids is None:
            label_ids = {index: index for index in range(len(self.classes))} | {IGNORE_INDEX: IGNORE_INDEX}
        self._lookup = np.full(2**16, -1, dtype=np.int64)  # label files have 8 or 16 bits
        self._lookup[list(label_ids)] = list(label_ids.values())

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image_path, label_path = self.pairs[index]
        image = read_image(image_path)
        label = read_label(label_path, self._lookup)
        if image.shape[1:] != label.shape:
            raise ValueError(
                f"{label_path} has {label.shape[1]}x{label.shape[0]} pixels and {image_path} "
                f"{image.shape[2]}x{image.shape[1]}: a label image must have the size of its picture"
            )
        return self.transform(tv_tensors.Image(image), tv_tensors.Mask(label))

    def name(self, index: int) -> str:
        """File name of the picture, without suffix."""
        return self.pairs[index][0].stem


def read_image(path: Path) -> Tensor:
    """A picture file as RGB uint8 (3, H, W)."""
    return torch.from_numpy(np.array(_open(path).convert("RGB"))).permute(2, 0, 1).contiguous()


def read_label(path: Path, lookup: np.ndarray) -> Tensor:
    """A label file as int64 (H, W): ``lookup[value]`` for each pixel, which must not be negative."""
    picture = _open(path)
    if picture.mode not in ("L", "P", "1", "I", "I;16"):
        raise ValueError(
            f"{path} is a colour picture (mode {picture.mode}): a label image holds one class number per pixel"
        )
    raw = np.array(picture).astype(np.int64)
    known = raw.min() >= 0 and raw.max() < len(lookup)
    if known and (labels := lookup[raw]).min() >= 0:
        return torch.from_numpy(labels)
    valid = np.flatnonzero(lookup >= 0)
    bad = sorted(set(np.unique(raw).tolist()) - set(valid.tolist()))
    listed = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    raise ValueError(
        f"{path} holds the label value {listed}, outside the {len(valid)} values of this dataset "
        f"({_ranges(valid)}): correct the file, or the dataset's class list"
    )


def _open(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except Exception as error:  # Pillow's decoders each fail in their own way
        raise ValueError(f"{path} cannot be read as a picture, it may be cut off: {error}") from error
    return picture


def _ranges(values: np.ndarray) -> str:
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


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
            f"{len(without)} of {len(pairs)} pictures have no label image of the same name (.png) in {labels}, "
            f"the first is {without[0]}"
        )
    return pairs
