"""ADE20K scene parsing, 150 classes: Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017."""

from pathlib import Path

from .. import IGNORE_INDEX
from ..pairs import ImagePairs, find_root, match_by_stem, read_classes

LAYOUT = """    ROOT/ADEChallengeData2016/images/training/ADE_train_00000001.jpg          20210 pictures
    ROOT/ADEChallengeData2016/images/validation/ADE_val_00000001.jpg           2000 pictures
    ROOT/ADEChallengeData2016/annotations/training/ADE_train_00000001.png      0 unlabelled, 1 to 150 a class
    ROOT/ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"""
SOURCE = "ADEChallengeData2016.zip (923 MB) from http://sceneparsing.csail.mit.edu (non-commercial research)"
FOLDER = "ADEChallengeData2016"


class ADE20K(ImagePairs):
    """Scenes, 150 classes; label 0 is unlabelled and ignored.

    Args:
        root: the folder that holds ``ADEChallengeData2016``, or that folder itself.
        split: "training" or "validation".
        transform: see :class:`data.pairs.ImagePairs`.
    """

    def __init__(self, root: str | Path | None, *, split: str, transform):
        if root is not None and Path(root).name == FOLDER:
            root = Path(root).parent
        needed = [f"{FOLDER}/{kind}/{split}" for kind in ("images", "annotations")]
        root = find_root(root, "ADE20K", LAYOUT, SOURCE, needed)
        classes = read_classes("ade20k")
        super().__init__(
            match_by_stem(root / needed[0], root / needed[1]),
            classes=[entry["name"] for entry in classes],
            palette=[entry["colour"] for entry in classes],
            result_values=range(1, len(classes) + 1),
            label_ids={0: IGNORE_INDEX} | {index + 1: index for index in range(len(classes))},
            transform=transform,
        )
