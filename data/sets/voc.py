"""PASCAL VOC 2012 segmentation, 21 classes: Everingham et al., IJCV 2010; with SBD's labels: Hariharan et al., 2011."""

from pathlib import Path

from ..pairs import ImagePairs, check_files, find_root, read_classes, read_list

LAYOUT = """    ROOT/VOC2012/JPEGImages/2007_000032.jpg
    ROOT/VOC2012/SegmentationClass/2007_000032.png         palette pictures, 255 the void outline
    ROOT/VOC2012/ImageSets/Segmentation/train.txt          1464 names; val.txt 1449, trainval.txt, test.txt
    ROOT/VOC2012/SegmentationClassAug/2007_000032.png      for train_aug: VOC's and SBD's labels as PNG
    ROOT/VOC2012/ImageSets/Segmentation/train_aug.txt      for train_aug: 10582 names (or trainaug.txt)"""
SOURCE = (
    "VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012; SBD's labels as PNG are those "
    "made for DeepLab (SegmentationClassAug.zip)"
)
FOLDER = "VOC2012"
SPLITS = {
    "train": ("train.txt",),
    "val": ("val.txt",),
    "trainval": ("trainval.txt",),
    "test": ("test.txt",),
    "train_aug": ("train_aug.txt", "trainaug.txt"),
}


class VOC(ImagePairs):
    """Objects, 21 classes of which 0 is the background and counts; 255, the outline of objects, is ignored.

    Args:
        root: the folder ``VOCdevkit``, or ``VOC2012`` in it.
        split: "train", "val", "trainval", "test" (no labels), or "train_aug", VOC's training set and SBD.
        transform: see :class:`data.pairs.ImagePairs`.
    """

    def __init__(self, root: str | Path | None, *, split: str, transform):
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
        if root is not None and Path(root).name == FOLDER:
            root = Path(root).expanduser().parent
        lists = [f"{FOLDER}/ImageSets/Segmentation/{name}" for name in SPLITS[split]]
        given = None if root is None else next((n for n in lists if (Path(root).expanduser() / n).is_file()), None)
        labels = {"test": None, "train_aug": "SegmentationClassAug"}.get(split, "SegmentationClass")
        needed = [given or lists[0], f"{FOLDER}/JPEGImages", *([f"{FOLDER}/{labels}"] if labels else [])]
        root = find_root(root, "PASCAL VOC 2012", LAYOUT, SOURCE, needed)
        # Some lists give paths, "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png".
        names = [Path(words[0]).stem for _, words in read_list(root / needed[0])]
        base = root / FOLDER
        pairs = [
            (base / "JPEGImages" / f"{name}.jpg", base / labels / f"{name}.png" if labels else None) for name in names
        ]
        classes = read_classes("voc")
        super().__init__(
            check_files(pairs, str(root / needed[0])),
            classes=[entry["name"] for entry in classes],
            palette=[entry["colour"] for entry in classes],
            transform=transform,
        )
