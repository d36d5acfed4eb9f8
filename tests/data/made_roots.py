"""Write small data sets in their real layouts."""

from pathlib import Path

import numpy as np
from conftest import write_pair
from PIL import Image

from ccnet.data.sets.folder import Folder
from ccnet.data.transforms import eval_transform


def write_cityscapes(root: Path) -> Path:
    """Write Cityscapes: two cities in train, one each in val and test."""
    for split, city, frames in (
        ("train", "aachen", 2),
        ("train", "bochum", 1),
        ("val", "lindau", 3),
        ("test", "bonn", 3),
    ):
        for frame in range(frames):
            stem = f"{city}_{frame:06d}_000019"
            label = root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
            write_pair(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", label, classes=34, seed=frame)
    return root


def write_lip(root: Path) -> Path:
    """Write LIP as its archives unpack."""
    for split, folder, count in (
        ("train", "TrainVal_images", 3),
        ("val", "TrainVal_images", 2),
        ("test", "Testing_images", 1),
    ):
        names = [f"{count}{index}_{100 + index}" for index in range(count)]
        images = root / folder / ("testing_images" if split == "test" else f"{split}_images")
        for index, name in enumerate(names):
            label = root / "TrainVal_parsing_annotations" / f"{split}_segmentations" / f"{name}.png"
            write_pair(images / f"{name}.jpg", label, classes=20, size=(60 + index, 40), seed=index)
        (root / folder / f"{split}_id.txt").write_text("\n".join(names) + "\n")
    return root


def write_voc(root: Path) -> Path:
    """Write a VOCdevkit with SBD labels; the first row of each is void."""
    base = root / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, folder, count in (("train_aug", "SegmentationClassAug", 3), ("val", "SegmentationClass", 2)):
        names = [f"2007_{index:06d}" for index in range(count)]
        for index, name in enumerate(names):
            path = base / folder / f"{name}.png"
            labels = write_pair(base / "JPEGImages" / f"{name}.jpg", path, classes=21, seed=index)
            labels[0] = 255
            Image.fromarray(labels).save(path)
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


FULL_FRAMES = {
    "train": ["0001TP_006690", "0001TP_006720", "0006R0_f00930", "0016E5_07920", "0016E5_08190"],
    "val": ["0016E5_07959", "0016E5_07961", "0016E5_07963"],
    "test": ["0001TP_008550", "Seq05VD_f00000"],
}


def write_camvid_full(root: Path) -> Path:
    """Write CamVid at full size: all splits in one folder, labels in the colours of the 32 classes."""
    colours = np.array([(128, 128, 128), (192, 0, 128), (0, 0, 64), (128, 0, 192), (0, 0, 0), (192, 0, 192)], np.uint8)
    for index, stem in enumerate(stem for stems in FULL_FRAMES.values() for stem in stems):
        label = root / "LabeledApproved_full" / f"{stem}_L.png"
        labels = write_pair(root / "701_StillsRaw_full" / f"{stem}.png", label, classes=6, seed=index)
        Image.fromarray(colours[labels]).save(label)
    return root


def write_ade20k(root: Path) -> Path:
    """Write ADE20K."""
    base = root / "ADEChallengeData2016"
    for split, prefix in (("training", "train"), ("validation", "val")):
        for index in range(2):
            stem = f"ADE_{prefix}_{index + 1:08d}"
            label = base / "annotations" / split / f"{stem}.png"
            write_pair(base / "images" / split / f"{stem}.jpg", label, classes=12, seed=index)
    test = root / "release_test" / "testing"
    test.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(test / "ADE_test_00000001.jpg")
    return root


def write_camvid(root: Path) -> Path:
    """Write CamVid in SegNet's layout: one sequence, with a gap in train."""
    for split, numbers in (("train", (0, 30, 60, 300, 330)), ("val", (1, 3, 5))):
        lines = []
        for number in numbers:
            name = f"0001TP_{number:06d}"
            image, label = f"{split}/{name}.png", f"{split}annot/{name}.png"
            write_pair(root / image, root / label, classes=12, seed=number)
            lines.append(f"{image} {label}")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def read_folder(images: Path, masks: Path, classes=3) -> Folder:
    """Read a user's own images and masks, all in one split."""
    return Folder(images, masks, classes=classes, split="all", val_share=0.2, transform=eval_transform())
