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
    for given in (f"day/1/{name}", f"day\\1\\{name}"):  # the latter by tools on Windows
        entry["file_name"] = given
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


def test_whole_numbers_may_be_floats_and_the_file_may_have_a_byte_order_mark(coco):
    root, content = coco
    want = load(root, content)
    for entry in (*content["images"], *content["annotations"]):
        given = entry.get("segmentation")
        if isinstance(given, dict) and isinstance(given["counts"], list):
            given["counts"] = [*map(float, given["counts"])]
        for name in {"id", "image_id", "category_id", "height", "width"} & entry.keys():
            entry[name] = float(entry[name])
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content), encoding="utf-8-sig")
    dataset = Coco(root, split="val", transform=None)
    assert all(np.array_equal(dataset[index][1]["masks"], want[index][1]["masks"]) for index in range(len(want)))
    assert dataset.ground_truth() == want.ground_truth()


def test_polygons_of_less_than_three_points_are_no_mask(coco):
    root, content = coco
    polygons = [entry for entry in content["annotations"] if isinstance(entry["segmentation"], list)]
    polygons[0]["segmentation"] = [[1, 2, 30, 40]]
    with pytest.warns(UserWarning, match=rf"skipping 1 objects .* annotations {polygons[0]['id']}$"):
        load(root, content)
    polygons[0]["segmentation"] = [1, 2, 30, 40, 5, 6]
    with pytest.raises(
        ValueError, match=rf"annotation {polygons[0]['id']} has the segmentation .*: expected a list of"
    ):
        load(root, content)


def test_images_and_categories_have_unique_ids(coco):
    root, content = coco
    for part in ("images", "categories"):
        repeated = content | {part: [*content[part], content[part][0]]}
        with pytest.raises(ValueError, match=rf"2 {part} have the id {content[part][0]['id']}: ids must be unique"):
            load(root, repeated)


def test_ids_of_annotations_do_not_change_the_scores(coco):
    root, content = coco
    want = load(root, content).ground_truth()
    for ids in (0, 0, 1, 2, 3), (7, 7, 7, 7, 7):
        for entry, number in zip(content["annotations"], ids, strict=False):
            entry["id"] = number
        assert load(root, content).ground_truth() == want


def test_what_scoring_needs_is_checked_at_the_start(coco):
    root, content = coco
    del content["annotations"][2]["area"]
    with pytest.raises(ValueError, match=r"annotation 3 has area=None and iscrowd=0: scoring needs the area"):
        load(root, content)
    load(root, content, training=True)


def test_deep_images_are_scaled(coco):
    root, content = coco
    path = root / "val" / content["images"][0]["file_name"]
    deep = np.arange(np.prod(Image.open(path).size[::-1]), dtype=np.uint16).reshape(Image.open(path).size[::-1])
    Image.fromarray(deep).save(path)
    dataset = load(root, content, value_range=[0, 4095])
    assert np.array_equal(dataset[0][0][1], np.round(deep.clip(0, 4095) * (255 / 4095)))
