"""Cityscapes, 19 classes: Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016."""

from pathlib import Path

from .. import IGNORE_INDEX
from ..pairs import ImagePairs, check_files, find_root, read_classes

LAYOUT = """    ROOT/leftImg8bit/train/CITY/CITY_000000_000019_leftImg8bit.png         2975 pictures
    ROOT/leftImg8bit/val, leftImg8bit/test                                 500 and 1525 pictures
    ROOT/gtFine/train/CITY/CITY_000000_000019_gtFine_labelIds.png          or ..._gtFine_labelTrainIds.png
    ROOT/gtFine/val"""
SOURCE = (
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com (registration)"
)
SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}


class Cityscapes(ImagePairs):
    """Streets, 1024x2048 pixels, 19 classes; the other 16 label ids are ignored.

    Args:
        root: the folder with ``leftImg8bit`` and ``gtFine``.
        split: "train", "val", "trainval", or "test", whose labels are kept by the benchmark.
        labels: "labelIds", mapped to the classes while reading, or "labelTrainIds", the files that cityscapesScripts
            makes of them.
        transform: see :class:`data.pairs.ImagePairs`.
    """

    def __init__(self, root: str | Path | None, *, split: str, transform, labels: str = "labelIds"):
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
        table = read_classes("cityscapes")
        classes = [entry for entry in table if entry["train_id"] not in (-1, IGNORE_INDEX)]
        label_ids = {
            "labelIds": {entry["id"]: entry["train_id"] for entry in table if entry["id"] >= 0},
            "labelTrainIds": {entry["train_id"] % 256: entry["train_id"] % 256 for entry in table},  # -1 is 255
        }
        if labels not in label_ids:
            raise ValueError(f"labels is {labels!r}: choose one of {', '.join(label_ids)}")
        parts = SPLITS[split]
        needed = [f"leftImg8bit/{part}" for part in parts] + [f"gtFine/{part}" for part in parts if part != "test"]
        root = find_root(root, "Cityscapes", LAYOUT, SOURCE, needed)
        pictures = [
            path for part in parts for path in sorted((root / "leftImg8bit" / part).glob("*/*_leftImg8bit.png"))
        ]
        if not pictures:
            raise FileNotFoundError(f"{root}/leftImg8bit/{parts[0]} holds no CITY/*_leftImg8bit.png\n{LAYOUT}")
        pairs = [(path, None if split == "test" else _label(root, path, labels)) for path in pictures]
        super().__init__(
            check_files(pairs, str(root / "leftImg8bit")),
            classes=[entry["name"] for entry in classes],
            palette=[entry["colour"] for entry in classes],
            label_ids=label_ids[labels],
            result_values=[entry["id"] for entry in classes],
            transform=transform,
        )


def _label(root: Path, picture: Path, labels: str) -> Path:
    stem = picture.stem.removesuffix("_leftImg8bit")
    return root / "gtFine" / picture.parent.parent.name / picture.parent.name / f"{stem}_gtFine_{labels}.png"
