"""Every data set implements the interface that training, evaluation and drawing use."""

import json

import pytest
import torch
from conftest import write_pair
from made_roots import write_ade20k, write_camvid, write_camvid_full, write_cityscapes, write_lip, write_voc

from ccnet.data import IGNORE_INDEX, sets
from ccnet.data.dataset import ImageDataset, SegmentationDataset
from ccnet.data.sets.coco import instances_transform
from ccnet.data.transforms import eval_transform

MAKERS = {
    "ADE20K": lambda root, **to: sets.ADE20K(write_ade20k(root), split="training", **to),
    "Beacons": lambda root, **to: sets.Beacons(split="train", length=2, **to),
    "CamVid": lambda root, **to: sets.CamVid(write_camvid(root), split="train", **to),
    "CamVidFull": lambda root, **to: sets.CamVidFull(write_camvid_full(root), split="train", **to),
    "CamVidVideo": lambda root, **to: sets.CamVidVideo(write_camvid(root), split="train", frames=3, **to),
    "Cityscapes": lambda root, **to: sets.Cityscapes(write_cityscapes(root), split="train", **to),
    "Folder": lambda root, **to: sets.Folder(*write_folders(root), classes=3, split="train", val_share=0.5, **to),
    "LIP": lambda root, **to: sets.LIP(write_lip(root), split="train", **to),
    "VOC": lambda root, **to: sets.VOC(write_voc(root), split="train_aug", **to),
}


def write_folders(root):
    for index in range(2):
        write_pair(root / "images" / f"{index}.jpg", root / "masks" / f"{index}.png", classes=3)
    return root / "images", root / "masks"


def write_one_object(root):
    write_pair(root / "val2017" / "7.png", root / "unused.png", classes=3)
    content = {
        "images": [{"id": 7, "file_name": "7.png", "height": 48, "width": 64}],
        "categories": [{"id": 3, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [2, 2, 9, 9], "area": 40.5, "iscrowd": 0}
            | {"segmentation": [[2, 2, 11, 2, 11, 11]]}
        ],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


def test_every_data_set_is_covered_here():
    assert {*MAKERS, "Coco"} == set(sets.__all__)


def check_images(dataset):
    assert isinstance(dataset, ImageDataset)
    assert len(dataset.classes) == len(dataset.palette)
    assert all(isinstance(name, str) for name in dataset.classes)
    assert all(len(colour) == 3 and all(0 <= value <= 255 for value in colour) for colour in dataset.palette)
    assert len({dataset.name(index) for index in range(len(dataset))}) == len(dataset)


@pytest.mark.parametrize("name", MAKERS)
def test_a_data_set_implements_the_segmentation_interface(name, tmp_path):
    dataset = MAKERS[name](tmp_path, transform=eval_transform())
    assert isinstance(dataset, SegmentationDataset)
    check_images(dataset)
    assert dataset.ignore_index == IGNORE_INDEX
    assert dataset.has_labels
    assert len(dataset.result_values) == len(dataset.classes)

    stored, stored_labels = dataset.read(0)
    frames = (3,) if name == "CamVidVideo" else ()
    height, width = stored.shape[-2:]
    assert (stored.dtype, stored_labels.dtype) == (torch.uint8, torch.uint8)
    assert (stored.shape, stored_labels.shape) == ((*frames, 3, height, width), (*frames, height, width))
    image, labels = dataset[0]
    assert (image.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (image.shape, labels.shape) == ((3, *frames, height, width), (*frames, height, width))
    assert 0 <= image.min() <= image.max() <= 1
    assert set(labels.unique().tolist()) <= {*range(len(dataset.classes)), IGNORE_INDEX}


def test_coco_implements_the_detection_interface(tmp_path):
    dataset = sets.Coco(write_one_object(tmp_path), split="val2017", transform=instances_transform())
    check_images(dataset)
    assert not isinstance(dataset, SegmentationDataset)
    image, target = dataset[0]
    assert (image.dtype, image.shape) == (torch.float32, (3, 48, 64))
    assert {name: tuple(value.shape) for name, value in target.items()} == {
        "boxes": (1, 4),
        "labels": (1,),
        "masks": (1, 48, 64),
        "crowds": (1,),
        "image_id": (),
    }


def test_without_a_transform_the_pair_is_as_stored(tmp_path):
    dataset = sets.CamVid(write_camvid(tmp_path), split="train", transform=None)
    assert all(torch.equal(one, other) for one, other in zip(dataset[0], dataset.read(0), strict=True))
