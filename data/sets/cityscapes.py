"""Cityscapes, 19 classes: Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..dataset import IGNORE_INDEX
from ..image_pairs import ImagePairs, PairTransform
from ..reading.file_lists import check_files, find_files
from ..reading.label_files import LabelFormat
from . import layouts
from .class_table import read_classes


class Cityscapes(ImagePairs):
    """Street scenes of 1024x2048 pixels with 19 classes; the other 16 label ids are ignored.

    Args:
        root: the folder that contains ``leftImg8bit`` and ``gtFine``.
        split: "train", "val", "trainval", or "test", whose labels are not public.
        labels: the kind of label files to read: "labelIds", which are mapped to the 19 classes, or "labelTrainIds",
            which cityscapesScripts generates.
        transform: see :class:`~ccnet.data.image_pairs.ImagePairs`.
    """

    def __init__(
        self, root: str | Path | None, *, split: str, transform: PairTransform | None, labels: str = "labelIds"
    ):
        table = read_classes("cityscapes")
        classes = [entry for entry in table if entry["train_id"] not in (-1, IGNORE_INDEX)]
        names = [entry["name"] for entry in classes]
        label_ids = self.label_format(names, labels=labels).label_ids
        folders = [path for path in layouts.CITYSCAPES.find(root, split) if path.parent.name == "leftImg8bit"]
        images = [path for folder in folders for path in find_files(folder, pattern="*/*_leftImg8bit.png")]
        if not images:
            raise FileNotFoundError(f"{folders[0]} contains no CITY/*_leftImg8bit.png\n{layouts.CITYSCAPES.tree}")
        self._label_folders = [folder.parents[1] / "gtFine" / folder.name for folder in folders]
        self._labels = labels
        pairs = [(path, None if split == "test" else _label_path(path, labels)) for path in images]
        super().__init__(
            check_files(pairs, str(folders[0].parent)),
            classes=names,
            palette=[entry["colour"] for entry in classes],
            label_ids=label_ids,
            result_values=[entry["id"] for entry in classes],
            transform=transform,
        )

    @classmethod
    def label_format(cls, classes: Sequence[str], *, labels: str = "labelIds", **options: Any) -> LabelFormat:
        """Return the format of the label images; see :meth:`~ccnet.data.image_pairs.ImagePairs.label_format`."""
        table = read_classes("cityscapes")
        label_ids = {
            "labelIds": {entry["id"]: entry["train_id"] for entry in table if entry["id"] >= 0},
            "labelTrainIds": {entry["train_id"] % 256: entry["train_id"] % 256 for entry in table},  # -1 becomes 255
        }
        if labels not in label_ids:
            raise ValueError(f"labels is {labels!r}: choose one of {', '.join(label_ids)}")
        return LabelFormat(label_ids[labels], image_name="*_leftImg8bit", label_name=f"*_gtFine_{labels}")

    def masks_without_image(self) -> list[Path]:
        """Return the label images whose image is missing, as after an incomplete download."""
        used = {_label_path(image, self._labels) for image, _ in self.pairs}
        pattern = f"*/*_gtFine_{self._labels}.png"
        present = (path for folder in self._label_folders for path in find_files(folder, pattern=pattern))
        return [path for path in present if path not in used]


def _label_path(image: Path, labels: str) -> Path:
    root, split, city = image.parents[3], image.parents[1].name, image.parent.name
    return root / "gtFine" / split / city / f"{image.stem.removesuffix('_leftImg8bit')}_gtFine_{labels}.png"
