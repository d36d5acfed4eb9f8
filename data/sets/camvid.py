"""CamVid in SegNet's split: Brostow et al., Semantic object classes in video, 2009; Badrinarayanan et al., 2017.

Two layouts are supported: SegNet's, 360x480 with 12 label values, and the original one, 720x960, whose label images
encode 32 classes as colours.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from ..dataset import IGNORE_INDEX
from ..image_pairs import ImagePairs, PairTransform
from ..reading.file_lists import check_files, find_files, inside, read_list, without_image
from ..reading.label_files import LabelFormat
from . import layouts

# SegNet's 11 classes, each with its colour and the colours of the CamVid classes merged into it.
_CLASSES = {
    "Sky": ((128, 128, 128), [(128, 128, 128)]),
    # building, archway, bridge, tunnel, wall
    "Building": ((128, 0, 0), [(128, 0, 0), (192, 0, 128), (0, 128, 64), (64, 0, 64), (64, 192, 0)]),
    # column or pole, traffic cone
    "Pole": ((192, 192, 128), [(192, 192, 128), (0, 0, 64)]),
    # road, lane markings
    "Road": ((128, 64, 128), [(128, 64, 128), (128, 0, 192), (192, 0, 64)]),
    # sidewalk, parking block, road shoulder
    "Pavement": ((60, 40, 222), [(0, 0, 192), (64, 192, 128), (128, 128, 192)]),
    # tree, other vegetation
    "Tree": ((128, 128, 0), [(128, 128, 0), (192, 192, 0)]),
    # sign or symbol, other text, traffic light
    "SignSymbol": ((192, 128, 128), [(192, 128, 128), (128, 128, 64), (0, 64, 64)]),
    "Fence": ((64, 64, 128), [(64, 64, 128)]),
    # car, pickup, truck or bus, train, other moving object
    "Car": ((64, 0, 128), [(64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)]),
    # pedestrian, child, cart or pram, animal
    "Pedestrian": ((64, 64, 0), [(64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)]),
    # bicyclist, motorcycle
    "Bicyclist": ((0, 128, 192), [(0, 128, 192), (192, 0, 192)]),
}
CLASSES = tuple(_CLASSES)
PALETTE = tuple(colour for colour, _ in _CLASSES.values())
UNLABELLED = 11
_VOID = (0, 0, 0)
_SMOOTHED = ("Seq05VD_f02610_L.png",)  # in the original data, 175 pixels on outlines have a mixture of two colours

# SegNet's split as ranges of frame numbers; the val clip is from a gap in a training sequence.
_SPLITS = {
    "train": {"0001TP": [(6690, 8520)], "0006R0": [(930, 3930)], "0016E5": [(390, 7920), (8190, 8640)]},
    "val": {"0016E5": [(7959, 8159)]},
    "test": {"0001TP": [(8550, 10380)], "Seq05VD": [(0, 5100)]},
}
_FRAME = re.compile(r"(?P<sequence>[^_]+)_f?(?P<number>\d+)")


class CamVid(ImagePairs):
    """Frames of driving videos, 360x480 pixels, with 11 classes; label 11 (unlabelled) is ignored.

    Args:
        root: the folder that contains ``train.txt``.
        split: "train", "val" or "test".
        transform: see :class:`~ccnet.data.image_pairs.ImagePairs`.
    """

    def __init__(self, root: str | Path | None, *, split: str, transform: PairTransform | None):
        folder, listed = layouts.CAMVID.find(root, split)
        super().__init__(
            _read_pairs(folder, listed),
            classes=CLASSES,
            palette=PALETTE,
            transform=transform,
        )

    @classmethod
    def label_format(cls, classes: Sequence[str], **options: Any) -> LabelFormat:
        """Return the format of the label images; see :meth:`~ccnet.data.image_pairs.ImagePairs.label_format`."""
        return LabelFormat({index: index for index in range(len(classes))} | {UNLABELLED: IGNORE_INDEX})


class CamVidFull(ImagePairs):
    """Frames of driving videos, 720x960 pixels; the 32 classes are merged into SegNet's 11, and void is ignored.

    The original label image of test frame Seq05VD_f02610 has partly smoothed outlines, whose mixed colours are ignored.

    Args:
        root: the folder that contains ``701_StillsRaw_full`` and ``LabeledApproved_full``.
        split: "train", "val" or "test": 367, 101 and 233 frames, as in SegNet.
        transform: see :class:`~ccnet.data.image_pairs.ImagePairs`.
    """

    def __init__(self, root: str | Path | None, *, split: str, transform: PairTransform | None):
        images, labels = layouts.CAMVID_FULL.find(root, split)
        self._folders, self._split = [(images, labels)], split
        frames = find_files(images, pattern="*.png")
        chosen = [path for path in frames if _in_split(path, split)]
        if not chosen:
            raise FileNotFoundError(f"{images} contains no {split} frames among its {len(frames)} images")
        super().__init__(
            check_files([(path, labels / f"{path.stem}_L.png") for path in chosen], str(images)),
            classes=CLASSES,
            palette=PALETTE,
            transform=transform,
        )

    @classmethod
    def label_format(cls, classes: Sequence[str], **options: Any) -> LabelFormat:
        """Return the format of the label images; see :meth:`~ccnet.data.image_pairs.ImagePairs.label_format`."""
        merged = {colour: index for index, (_, colours) in enumerate(_CLASSES.values()) for colour in colours}
        return LabelFormat(merged | {_VOID: IGNORE_INDEX}, label_name="*_L", smoothed=_SMOOTHED)

    def masks_without_image(self) -> list[Path]:
        """Return the label images of the split whose frame is missing, as after an incomplete download."""
        unused = without_image(self._folders, label_name="*_L")
        return [path for path in unused if _in_split(path, self._split)]


def frame_of(path: Path) -> tuple[str, int]:
    """Return the sequence and the frame number (at 30 Hz) encoded in a frame's file name."""
    match = _FRAME.match(path.stem)
    if not match:
        raise ValueError(f"{path} is not named like a CamVid frame, SEQUENCE_NUMBER")
    return match["sequence"], int(match["number"])


def _in_split(path: Path, split: str) -> bool:
    sequence, number = frame_of(path)
    return any(first <= number <= last for first, last in _SPLITS[split].get(sequence, ()))


def _read_pairs(root: Path, listed: Path) -> list[tuple[Path, Path | None]]:
    """Return the (image, label image) paths in a list file, as paths in ``root``."""
    pairs: list[tuple[Path, Path | None]] = []
    for place, line in read_list(listed):
        words = line.split()
        if len(words) != 2:
            raise ValueError(f"{place}: expected 'image label', got {line!r}")
        # The paths in the published lists start with the authors' own folder: /SegNet/CamVid/train/NAME.png
        image, label = (inside(root, str(PurePath(*PurePath(word).parts[-2:])), place) for word in words)
        pairs.append((image, label))
    return check_files(pairs, str(listed))
