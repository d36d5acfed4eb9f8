"""Annotation files as tools write them: images in subfolders, objects without a mask, sizes as floats."""

import json

import numpy as np
import pytest
from coco_data import write_coco
from PIL import Image

from ccnet.data.sets import Coco


def load(root, content, **options):
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return Coco(root, split="val", transform=None, **options)


@pytest.fixture
def coco(tmp_path):
    return tmp_path, write_coco(tmp_path, images=2, split="val")


def test_images_may_lie_in_subfolders(coco):
    root, content = coco
    entry = content["images"][0]
    name = entry["file_name"]
    (root / "val" / "day" / "1").mkdir(parents=True)
    (root / "val" / name).rename(root / "val" / "day" / "1" / name)
    entry["file_name"] = f"day/1/{name}"
    dataset = load(root, content)
    assert dataset.name(0) == f"day_1_{name[:-4]}"
    assert dataset[0][0].shape[1:] == (entry["height"], entry["width"])
    for missing in ("day/2.png", f"/{name}", f"../val/{content['images'][1]['file_name']}"):
        entry["file_name"] = missing
        with pytest.raises(FileNotFoundError, match=rf"lists {missing}, which is not in .*val \(1 of 4 images"):
            load(root, content)


def test_objects_without_a_mask_are_skipped_by_name(coco):
    root, content = coco
    number = len(content["annotations"])
    for entry, empty in zip(content["annotations"][1:3], ([], [[]]), strict=True):
        entry["segmentation"] = empty
    with pytest.warns(UserWarning, match=r"val\.json: skipping 2 objects with an empty seg.*annotations 2, 3"):
        dataset = load(root, content)
    assert sum(len(dataset[index][1]["labels"]) for index in range(len(dataset))) == number - 2
    assert len(dataset.ground_truth()["annotations"]) == number - 2


def test_sizes_may_be_floats_and_wrong_ones_are_named_at_the_start(coco):
    root, content = coco
    encoded = [entry for entry in content["annotations"] if isinstance(entry["segmentation"], dict)]
    want = load(root, content)
    for entry in encoded:
        entry["segmentation"]["size"] = [float(side) for side in entry["segmentation"]["size"]]
    dataset = load(root, content)
    for index in range(len(want)):
        assert np.array_equal(dataset[index][1]["masks"], want[index][1]["masks"])
    assert all(type(side) is int for entry in dataset.ground_truth()["annotations"]
               if isinstance(entry["segmentation"], dict) for side in entry["segmentation"]["size"])  # fmt: skip
    encoded[0]["segmentation"]["size"][0] += 0.5
    with pytest.raises(ValueError, match=rf"annotation {encoded[0]['id']} has a mask that does not lie within"):
        load(root, content)


def test_deep_images_are_scaled(coco):
    root, content = coco
    path = root / "val" / content["images"][0]["file_name"]
    deep = np.arange(np.prod(Image.open(path).size[::-1]), dtype=np.uint16).reshape(Image.open(path).size[::-1])
    Image.fromarray(deep).save(path)
    dataset = load(root, content, value_range=[0, 4095])
    assert np.array_equal(dataset[0][0][1], np.round(deep.clip(0, 4095) * (255 / 4095)))
