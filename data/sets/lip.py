"""LIP single person parsing, 20 classes: Gong et al., Look into Person, CVPR 2017."""

from pathlib import Path

from ..image_pairs import ImagePairs, PairTransform
from ..reading.file_lists import check_files, inside, read_list
from . import layouts
from .class_table import read_classes


class LIP(ImagePairs):
    """Images of single persons with 20 classes; class 0 (background) is scored like any other.

    Args:
        root: the folder that contains ``TrainVal_images`` and ``TrainVal_parsing_annotations``.
        split: "train", "val", or "test", whose labels are not public.
        transform: see :class:`~ccnet.data.image_pairs.ImagePairs`.
    """

    def __init__(self, root: str | Path | None, *, split: str, transform: PairTransform | None):
        listed, images, *labels = layouts.LIP.find(root, split)
        names = [(place, line.split()[0].removesuffix(".jpg")) for place, line in read_list(listed)]
        pairs = [
            (inside(images, f"{name}.jpg", place), inside(labels[0], f"{name}.png", place) if labels else None)
            for place, name in names
        ]
        classes = read_classes("lip")
        super().__init__(
            check_files(pairs, str(listed)),
            classes=[entry["name"] for entry in classes],
            palette=[entry["colour"] for entry in classes],
            transform=transform,
        )
