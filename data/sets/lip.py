"""LIP single person parsing, 20 classes: Gong et al., Look into Person, CVPR 2017."""

from pathlib import Path

from ..pairs import ImagePairs, check_files, find_root, inside, read_classes, read_list

LAYOUT = """    ROOT/TrainVal_images/train_id.txt, val_id.txt                              30462 and 10000 names
    ROOT/TrainVal_images/train_images/100034_483681.jpg                        likewise val_images
    ROOT/TrainVal_parsing_annotations/train_segmentations/100034_483681.png    likewise val_segmentations
    ROOT/Testing_images/test_id.txt, testing_images/*.jpg                      10000 pictures without labels"""
SOURCE = "the folder LIP, single person, of https://sysu-hcp.net/lip (non-commercial research)"
# Classes that become each other in the mirror: left and right arm, leg, shoe.
FLIP_PAIRS = ((14, 15), (16, 17), (18, 19))


class LIP(ImagePairs):
    """Single persons, 20 classes of which 0 is the background and counts.

    Args:
        root: the folder with ``TrainVal_images`` and ``TrainVal_parsing_annotations``.
        split: "train", "val", or "test", whose labels are kept by the benchmark.
        transform: see :class:`data.pairs.ImagePairs`.
    """

    def __init__(self, root: str | Path | None, *, split: str, transform):
        if split not in ("train", "val", "test"):
            raise ValueError(f"split is {split!r}: choose one of train, val, test")
        folder = "Testing_images" if split == "test" else "TrainVal_images"
        images = f"{folder}/{'testing' if split == 'test' else split}_images"
        labels = None if split == "test" else f"TrainVal_parsing_annotations/{split}_segmentations"
        needed = [f"{folder}/{split}_id.txt", images, *([labels] if labels else [])]
        root = find_root(root, "LIP", LAYOUT, SOURCE, needed)
        names = [(place, words[0].removesuffix(".jpg")) for place, words in read_list(root / needed[0])]
        pairs = [
            (
                inside(root / images, f"{name}.jpg", place),
                inside(root / labels, f"{name}.png", place) if labels else None,
            )
            for place, name in names
        ]
        classes = read_classes("lip")
        super().__init__(
            check_files(pairs, str(root / needed[0])),
            classes=[entry["name"] for entry in classes],
            palette=[entry["colour"] for entry in classes],
            transform=transform,
        )
