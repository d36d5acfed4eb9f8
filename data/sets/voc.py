"""PASCAL VOC 2012 segmentation, 21 classes: Everingham et al., IJCV 2010; with SBD's labels: Hariharan et al., 2011."""

from pathlib import Path

from ..image_pairs import ImagePairs, PairTransform
from ..reading.file_lists import check_files, read_list
from . import layouts
from .class_table import read_classes


class VOC(ImagePairs):
    """Images with 21 classes; class 0 (background) is scored, and label 255 (outlines of objects) is ignored.

    Args:
        root: the folder ``VOCdevkit``, or its subfolder ``VOC2012``.
        split: "train", "val", "trainval", "test" (no labels), or "train_aug" (VOC's training set and SBD).
        transform: see :class:`~ccnet.data.image_pairs.ImagePairs`.
    """

    def __init__(self, root: str | Path | None, *, split: str, transform: PairTransform | None):
        listed, images, *labels = layouts.VOC.find(root, split)
        # Some lists contain paths such as "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png".
        names = [Path(line.split()[0]).stem for _, line in read_list(listed)]
        # VOC's own labels, where there are any, are finer than SBD's and outline the objects. The SegmentationClassAug
        # that mmsegmentation's script writes has only SBD's, and none for some of the names.
        own = images.parent / "SegmentationClass"
        labelled = {path.stem for path in own.glob("*.png")}
        pairs = [
            (images / f"{name}.jpg", (own if name in labelled else labels[0]) / f"{name}.png" if labels else None)
            for name in names
        ]
        classes = read_classes("voc")
        super().__init__(
            check_files(pairs, str(listed)),
            classes=[entry["name"] for entry in classes],
            palette=[entry["colour"] for entry in classes],
            result_folder="results/VOC2012/Segmentation/comp6_test_cls",  # comp6 allows other training data, as SBD's
            transform=transform,
        )
