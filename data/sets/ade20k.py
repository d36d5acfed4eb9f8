"""ADE20K scene parsing, 150 classes: Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..dataset import IGNORE_INDEX
from ..image_pairs import ImagePairs, PairTransform
from ..reading.file_lists import find_files, match_by_name
from ..reading.label_files import LabelFormat
from . import layouts
from .class_table import read_classes


class ADE20K(ImagePairs):
    """Images of scenes with 150 classes; label 0 (unlabelled) is ignored.

    Args:
        root: the folder that contains ``ADEChallengeData2016``, or that folder itself.
        split: "training", "validation", or "testing", whose labels are not public.
        transform: see :class:`~ccnet.data.image_pairs.ImagePairs`.
    """

    def __init__(self, root: str | Path | None, *, split: str, transform: PairTransform | None):
        images, *labels = layouts.ADE20K.find(root, split)
        matched = match_by_name(images, labels[0]) if labels else None
        self._unused = matched.unused if matched else []
        pairs = matched.pairs if matched else [(path, None) for path in find_files(images)]
        if not pairs:
            raise FileNotFoundError(f"{images} contains no images")
        classes = read_classes("ade20k")
        super().__init__(
            pairs,
            classes=[entry["name"] for entry in classes],
            palette=[entry["colour"] for entry in classes],
            result_values=range(1, len(classes) + 1),
            transform=transform,
        )

    @classmethod
    def label_format(cls, classes: Sequence[str], **options: Any) -> LabelFormat:
        """Return the format of the label images; see :meth:`~ccnet.data.image_pairs.ImagePairs.label_format`."""
        return LabelFormat({0: IGNORE_INDEX} | {index + 1: index for index in range(len(classes))})

    def masks_without_image(self) -> list[Path]:
        """Return the label images whose image is missing, as after an incomplete download."""
        return list(self._unused)
