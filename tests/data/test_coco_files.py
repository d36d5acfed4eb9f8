"""Annotation files as tools write them: images in subfolders, objects without a mask, sizes as floats."""

import json

import numpy as np
import pytest
from coco_data import write_coco
from PIL import Image

from ccnet.data import contents_of
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


def test_other_objects_or_another_image_are_another_data_set(coco):
    """A run is continued on the same data only."""
    root, content = coco
    before = contents_of(load(root, content))
    assert contents_of(load(root, content)) == before
    content["annotations"][0]["bbox"][0] += 1
    other_objects = contents_of(load(root, content))
    path = root / "val" / content["images"][0]["file_name"]
    path.write_bytes(path.read_bytes() + b"\0")
    assert len({before, other_objects, contents_of(load(root, content))}) == 3


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


def test_an_image_is_listed_once(coco):
    """Each of its entries would lack the objects of the other, and training would take these for background."""
    root, content = coco
    content["images"].append(content["images"][0] | {"id": 99})
    with pytest.raises(ValueError, match=r"2 images have the file_name 0+10\.png: file_names must be unique; give all"):
        load(root, content)


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
    with pytest.raises(ValueError, match=r"annotation 3 has area=None: scoring needs the area"):
        load(root, content)
    load(root, content, training=True)
    content["annotations"][2]["area"] = -300.0  # of a polygon that runs the other way round; COCO would not score it
    with pytest.raises(ValueError, match=r"annotation 3 has area=-300\.0: scoring needs the area"):
        load(root, content)


def test_a_split_without_objects_is_refused(coco):
    """Its average precision would be undefined."""
    root, content = coco
    crowds = [entry | {"iscrowd": 1} for entry in content["annotations"]]
    for annotations in ([], crowds):
        for training, purpose in (
            (False, "score: crowds do"),
            (True, "train on: crowds and boxes of less than a pixel"),
        ):
            with pytest.raises(ValueError, match=rf"val\.json lists no objects to {purpose}"):
                load(root, content | {"annotations": annotations}, training=training)


def test_deep_images_are_scaled(coco):
    root, content = coco
    path = root / "val" / content["images"][0]["file_name"]
    deep = np.arange(np.prod(Image.open(path).size[::-1]), dtype=np.uint16).reshape(Image.open(path).size[::-1])
    Image.fromarray(deep).save(path)
    dataset = load(root, content, value_range=[0, 4095])
    assert np.array_equal(dataset[0][0][1], np.round(deep.clip(0, 4095) * (255 / 4095)))


@pytest.mark.parametrize("training", [False, True])
def test_boxes_in_another_format_are_refused(coco, training):
    root, content = coco
    careless = content["annotations"][1]["bbox"]
    content["annotations"][1]["bbox"] = [0, 0, 5, 5]
    load(root, content, training=training)  # one careless box is no reason to refuse a data set
    content["annotations"][1]["bbox"] = careless
    # Near the upper left corner, the two corners of a box are similar to a corner and a size.
    entries = content["annotations"] = [entry for entry in content["annotations"] if entry["bbox"][0] > 20]
    boxes = [entry["bbox"] for entry in entries]
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for name, convert in {
        "corners": lambda x, y, w, h, _: [x, y, x + w, y + h],
        "centres": lambda x, y, w, h, _: [x + w / 2, y + h / 2, w, h],
        "shares": lambda x, y, w, h, size: [x / size[0], y / size[1], w / size[0], h / size[1]],
        "twice as large": lambda x, y, w, h, _: [2 * x, 2 * y, 2 * w, 2 * h],
    }.items():
        for entry, box in zip(entries, boxes, strict=True):
            entry["bbox"] = convert(*box, sizes[entry["image_id"]])
        with pytest.raises(ValueError, match=r"2 of 2 boxes that were checked do not fit their masks: annotation \d"):
            load(root, content, training=training)
            pytest.fail(name)


def test_boxes_and_polygons_may_reach_out_of_the_image(coco):
    root, content = coco
    corners = [[-30, -30, 10, -30, 10, 10, -30, 10]]
    for entry in content["annotations"]:
        entry |= {"segmentation": corners, "bbox": [-30, -30, 40, 40], "iscrowd": 0}
    assert load(root, content)[0][1]["masks"][0].sum() == 100
    for entry in content["annotations"]:
        entry["bbox"] = [-30, -30, 80, 80]
    with pytest.raises(ValueError, match="boxes that were checked do not fit their masks"):
        load(root, content)


def test_masks_of_a_larger_image_are_refused(coco):
    root, content = coco
    entry = content["annotations"][0]
    entry |= {"bbox": [90, 60, 20, 30], "segmentation": [[90, 60, 110, 60, 110, 90]]}
    content["annotations"] = [entry]
    with pytest.raises(ValueError, match="boxes that were checked do not fit their masks"):
        load(root, content)


def test_training_skips_masks_without_a_pixel(coco):
    root, content = coco
    entry = content["annotations"][0]
    x, y, *_ = entry["bbox"]
    entry["segmentation"] = [[x, y, x + 9, y + 9, x + 18, y + 18]]  # three points on a line
    everything, training = load(root, content), load(root, content, training=True)
    assert (everything[0][1]["labels"].shape[0], training[0][1]["labels"].shape[0]) == (3, 1)
    assert not everything[0][1]["masks"][0].any() and training[0][1]["masks"].flatten(1).any(dim=1).all()
    assert len(training[0][1]["boxes"]) == 1


@pytest.mark.parametrize("given", ["0", "1", 2, 0.5])
def test_iscrowd_is_0_or_1(coco, given):
    root, content = coco
    content["annotations"][0]["iscrowd"] = given
    for training in (False, True):
        with pytest.raises(ValueError, match=rf"annotation 1 has iscrowd={given!r}: expected 0, or 1 for a crowd"):
            load(root, content, training=training)


@pytest.mark.parametrize("given", [0.0, False, 1.0, True, None])
def test_iscrowd_may_be_a_float_a_boolean_or_null(coco, given):
    root, content = coco
    content["annotations"][0]["iscrowd"] = given
    assert len(load(root, content, training=True)[0][1]["labels"]) == 2 - int(given or 0)
    assert load(root, content).ground_truth()["annotations"][0].get("iscrowd") == given


def test_points_as_pairs_are_refused(coco):
    root, content = coco
    content["annotations"][0]["segmentation"] = [[[1, 2], [30, 2], [30, 40], [1, 40]]]
    with pytest.raises(ValueError, match=r"annotation 1 has the segmentation .*: expected a list of polygons, \[\[x1"):
        load(root, content)


def test_categories_have_names_of_their_own(coco):
    """As Roboflow writes them, with a supercategory of the same name."""
    root, content = coco
    content["categories"] = [{"id": 0, "name": "disc", "supercategory": "none"}, *content["categories"]]
    with pytest.raises(ValueError, match="2 categories have the name disc: names must be unique; rename a category"):
        load(root, content)


def test_annotations_drawn_on_a_photo_that_is_not_upright_are_refused(coco):
    root, content = coco
    path = root / "val" / content["images"][0]["file_name"]
    exif = Image.Exif()
    exif[0x112] = 6
    Image.open(path).save(path, exif=exif)
    with pytest.raises(ValueError, match="annotations seem to have been drawn without: remove the orientation from"):
        load(root, content)[0]


def test_an_invalid_mask_is_an_error_of_its_image_only(coco):
    root, content = coco
    entry = content["annotations"][0]
    entry["segmentation"] = {"size": [80, 60], "counts": [10, 20]}
    dataset = load(root, content)
    with pytest.raises(ValueError, match="annotation 1 has an invalid mask"):
        dataset[0]
    assert len(dataset[1][1]["masks"]) == 2
    image = content["images"][0]
    image |= {"height": 10**6, "width": 10**6}  # a mask of that size would not fit into memory
    for entry in content["annotations"]:
        if entry["image_id"] == image["id"]:
            entry["segmentation"] = [[1, 1, 30, 1, 30, 30]]
    with pytest.raises(ValueError, match=r"has 60x80 pixels, but .* says 1000000x1000000"):
        load(root, content)[0]
