"""Labels that do not allow a network to learn every class are reported, by check_data.py and before training."""

import json
import sys

import numpy as np
import pytest
import torch
from coco_data import CATEGORIES, write_coco
from conftest import write_pair
from PIL import Image

from ccnet.data import first_look
from ccnet.data.inspection import inspect_dataset, inspected
from ccnet.data.label_checks import absent_classes, differing_classes, label_problems, unpaired_sides
from ccnet.data.sets import Folder
from ccnet.models.factory import compose_conf

BINARY = (
    "train: the label images contain only 0 and 255, and 255 is ignored, so that car is never learned: if 255 stands "
    "for it, set dataset.values=[0,255]"
)


def write_binary(root, values=(0, 255), number=3):
    """Write images, and masks of the two values in two halves."""
    for index in range(number):
        write_pair(root / "images" / f"{index}.png", root / "masks" / f"{index}.png", classes=2, seed=index)
        mask = np.array(values, np.uint8)[np.array(Image.open(root / "masks" / f"{index}.png"))]
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    return root / "images", root / "masks"


def folder(images, masks, classes=("road", "car"), split="all", **options):
    return Folder(images, masks, classes=classes, split=split, val_share=0.3, transform=None, **options)


def test_masks_of_0_and_255_with_two_classes_are_reported(tmp_path):
    folders = write_binary(tmp_path)
    assert first_look(folder(*folders), "train") == [BINARY]
    assert label_problems(folder(*folders), inspect_dataset(folder(*folders)), "train") == [BINARY]
    for good in (folder(*folders, values=[0, 255]), folder(*write_binary(tmp_path / "b", (0, 1)))):
        assert first_look(good, "train") == label_problems(good, inspect_dataset(good), "train") == []


def test_splits_without_a_valid_pixel_are_reported(tmp_path):
    dataset = folder(*write_binary(tmp_path, (255, 255)))
    assert first_look(dataset, "val") == ["val: no pixel has a class, all of them are ignored"]


def test_the_share_of_images_that_contain_a_class_does_not_depend_on_their_sizes(tmp_path):
    for name, size, label in [("large", 64, 0), ("small", 8, 1)]:
        mask = tmp_path / "masks" / f"{name}.png"
        write_pair(tmp_path / "images" / f"{name}.png", mask, classes=2, size=(size, size))
        Image.fromarray(np.full((size, size), label, np.uint8)).save(mask)
    dataset = folder(tmp_path / "images", tmp_path / "masks")
    rows = inspect_dataset(dataset).class_rows(dataset.classes, dataset.ignore_index)
    assert [(row[0], row[2]) for row in rows] == [("road", 50), ("car", 50), ("ignored", 0)]


def test_absent_classes_are_reported(tmp_path):
    dataset = folder(*write_binary(tmp_path, (0, 1)), classes=("road", "car", "sky", "tree"))
    assert first_look(dataset, "train") == ["train: none of 3 label images contains sky, tree"]
    assert first_look(dataset, "val") == []  # the scores say over how many classes they are
    counts = {"train": np.array([5, 0, 0]), "val": np.array([5, 1, 0])}
    assert absent_classes(counts, ["road", "car", "sky"]) == [
        "classes that occur nowhere in train, val: sky",
        "classes that do not occur in train and cannot be learned: car",
    ]
    assert absent_classes({}, ["road"]) == []


def test_a_first_look_reads_few_labels_and_none_of_a_detection_data_set(tmp_path):
    read = []

    class Many:
        has_labels, classes = True, ("road", "car")

        def __len__(self):
            return 10_000

        def read_labels(self, index):
            read.append(index)
            return torch.zeros(4, 4, dtype=torch.uint8)

    assert first_look(Many(), "train") == ["train: none of 32 label images contains car"]
    assert len(read) == 32
    assert np.ptp(read) > 9000
    assert first_look(object(), "train") == []


def test_a_first_look_finds_unreadable_labels(tmp_path):
    images, masks = write_binary(tmp_path, (0, 1))
    (masks / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train: .*masks/1\.png cannot be read as an image: .*GIF$"):
        first_look(folder(images, masks), "train")
    (found,) = first_look(folder(images, masks), "train", skip_broken=1)
    assert "masks/1.png cannot be read" in found
    (masks / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\(2 of 3 label images that were checked\)"):
        first_look(folder(images, masks), "train", skip_broken=1)


def test_a_first_look_finds_undefined_values(tmp_path):
    dataset = folder(*write_binary(tmp_path, (0, 7)))
    with pytest.raises(ValueError, match=r"train: label images such as 0 contain values .*: 7 \(50\.00%\); check_data"):
        first_look(dataset, "train")
    numbered = r"from 1, set dataset\.values=1-2, and dataset\.ignore_label=0 if 0 means no data: 2 \(50\.00%\)"
    with pytest.raises(ValueError, match=numbered):
        first_look(folder(*write_binary(tmp_path, (1, 2))), "train")
    assert first_look(folder(tmp_path / "images", tmp_path / "masks", values="1-2", ignore_label=0), "train") == []


def test_masks_are_not_read_by_forks_of_a_process_in_which_jax_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", object())
    loader = inspected([0], num_workers=1, track=None)
    assert loader.multiprocessing_context.get_start_method() == "spawn"


def check(run_entry, images, masks, *options, **expected):
    return run_entry(
        "check_data.py", "dataset=folder", f"dataset.images={images}", f"dataset.masks={masks}", "splits=[all]",
        "dataset.classes=[road,car]", "recipe.train_transform.crop_size=[32,32]", "num_workers=0", *options, **expected,
    )  # fmt: skip


def test_check_data_reports_masks_of_0_and_255_and_leaves_no_figure_of_an_earlier_run(tmp_path, run_entry):
    images, masks = write_binary(tmp_path, number=1)
    output = tmp_path / "outputs" / "check" / "folder"
    output.mkdir(parents=True)
    (output / "train_samples.png").touch()  # of a run that has checked other splits
    done = check(run_entry, images, masks, "samples=2", ok=False)
    assert BINARY.replace("train:", "all:") in done.stderr
    assert "classes that occur nowhere in all: car" in done.stderr
    assert "1 of 8-bit RGB" in done.stdout
    assert sorted(path.name for path in output.iterdir()) == ["all_classes.csv", "all_samples.png"]
    check(run_entry, images, masks, "samples=0", "dataset.values=[0,255]")
    assert not (output / "all_samples.png").exists()


def test_check_data_reports_undefined_values_in_one_table_and_bit_depths(tmp_path, run_entry):
    images, masks = write_binary(tmp_path, number=3)
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(images / "0.png")
    for name, value in (("1", 7), ("2", 7), ("2", 9)):
        mask = np.array(Image.open(masks / f"{name}.png"))
        mask[value] = value
        Image.fromarray(mask).save(masks / f"{name}.png")
    done = check(run_entry, images, masks, "dataset.values=[0,255]", ok=False)
    assert "2 of 8-bit RGB; 1 of 16-bit I;16" in done.stdout
    table = done.stderr.partition("values that the data set does not define:\n")[2].splitlines()
    assert [line.split() for line in table[2:4]] == [["7", "1.39", "2", "1"], ["9", "0.69", "1", "2"]]


def test_check_data_lists_the_colours_of_masks_in_one_table(tmp_path, run_entry):
    images, masks = write_binary(tmp_path, number=2)
    for index in range(2):
        colours = np.zeros((48, 64, 3), np.uint8)
        colours[:24, 0, 1] = range(24)  # many, as in masks that were resized
        colours[24:, :, 0] = 128 + index
        Image.fromarray(colours).save(masks / f"{index}.png")
    done = check(run_entry, images, masks, ok=False)
    head = "  all: label images contain colours that the data set does not define (with dataset=folder, dataset"
    table = done.stderr.partition(head)[2].splitlines()
    assert [line.split() for line in table[3:6]] == [
        ["0", "0", "0", "49.25", "2", "0"],
        ["128", "0", "0", "25.00", "1", "0"],
        ["129", "0", "0", "25.00", "1", "1"],
    ]
    assert "problems (1)" in done.stderr
    colours[:24, :, 2] = np.arange(24 * 64).reshape(24, 64) % 200
    for index in range(2):
        Image.fromarray(colours).save(masks / f"{index}.png")
    done = check(run_entry, images, masks, ok=False)
    assert len(done.stderr.partition(head)[2].splitlines()) == 35
    assert f"\n    and {len(np.unique(colours.reshape(-1, 3), axis=0)) - 30} more\n" in done.stderr


def test_check_data_takes_one_split_by_name_and_at_least_one(tmp_path, run_entry):
    images, masks = write_binary(tmp_path, number=1)
    done = check(run_entry, images, masks, "splits=all", "samples=0", "dataset.values=[0,255]")
    assert "all: 1 samples, 0 of them invalid" in done.stdout
    assert "splits is empty: name the splits to check" in check(run_entry, images, masks, "splits=[]", ok=False).stderr
    done = check(run_entry, images, masks, "splits=[all,5]", "dataset.values=[0,255]", ok=False)
    assert "error: this data set has no split 5: choose one of train, val, test, all" in done.stderr
    assert not done.stdout  # no split is read before all are known to exist


def test_check_data_reports_pairs_of_left_and_right(tmp_path, run_entry):
    images, masks = write_binary(tmp_path, number=1)
    values = ["splits=all", "samples=1", "dataset.classes=[left arm,right arm]", "dataset.values=[0,255]"]
    assert "which turns left arm into right arm" in check(run_entry, images, masks, *values).stdout
    assert "into right arm" not in check(run_entry, images, masks, *values, "dataset.flip_pairs=[[0,1]]").stdout
    for pairs, told in (("[[0,5]]", "flip_pairs contains [0, 5]"), ("[0,1]", "flip_pairs is [0, 1], but must be")):
        assert told in check(run_entry, images, masks, *values, f"dataset.flip_pairs={pairs}", ok=False).stderr


def test_left_and_right_need_pairs():
    classes = ["background", "Left kidney", "right kidney", "lung_L", "lung_R", "light", "rright"]
    told = unpaired_sides(classes, {"flip_pairs": None})
    assert told == [
        "train: half of the images are mirrored, which turns Left kidney into right kidney: set "
        "dataset.flip_pairs=[[1,2],[3,4]] to swap the classes as well, or ++recipe.train_transform.flip=0"
    ]
    assert "[[3,4]]" in unpaired_sides(classes, {"flip_pairs": [[2, 1]]})[0]
    assert unpaired_sides(classes, {"flip_pairs": [[1, 2], [4, 3]]}) == unpaired_sides(classes, {"flip": 0}) == []
    assert unpaired_sides(["left arm", "right arm"], {"flip_pairs": [[0, 1]]}) == []
    assert unpaired_sides(["car", "left turn", "wall", "r"], {}) == []
    with pytest.raises(ValueError, match=r"flip_pairs contains \[1, 7\]: set pairs of class numbers from 0 to 6"):
        unpaired_sides(classes, {"flip_pairs": [[1, 7]]})


def test_pairs_are_not_suggested_to_a_transform_that_cannot_swap_classes():
    """That of objects has none, and those of other data sets would ignore ``dataset.flip_pairs``."""
    for recipe in ("coco", "camvid", "cityscapes"):
        for flip, number in (("seed=0", 1), ("++recipe.train_transform.flip=0", 0)):
            config = compose_conf(["dataset=folder", f"recipe={recipe}", flip], "config")
            told = unpaired_sides(["left arm", "right arm"], config.recipe.train_transform)
            assert len(told) == number
            assert all(line.endswith("into right arm: set ++recipe.train_transform.flip=0") for line in told)


def test_values_of_smoothed_masks_come_with_advice(tmp_path):
    images, masks = write_binary(tmp_path)
    Image.fromarray(np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)).save(masks / "1.png")
    with pytest.raises(ValueError, match=r"does not define; if the masks were smoothed, resized or saved as JPEG"):
        first_look(folder(images, masks, values=[0, 255]), "train")


def test_check_data_supports_detection(tmp_path, run_entry):
    content = write_coco(tmp_path / "root", images=3, split="val")
    options = ("check_data.py", "model=mask_rcnn", "dataset=coco", f"dataset.root={tmp_path / 'root'}")
    done = run_entry(*options, "dataset.val.split=val", "splits=[val]", "num_workers=0", "samples=2")
    assert "val: 5 samples, 0 of them invalid; " in done.stdout
    output = tmp_path / "outputs" / "check" / "coco"
    assert np.array(Image.open(output / "val_samples.png")).std() > 10
    rows = [line.split(",") for line in (output / "val_classes.csv").read_text().splitlines()]
    objects = {row[0]: int(row[1]) for row in rows[1:]}
    assert sum(objects.values()) == len(content["annotations"])
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] != CATEGORIES[0]["id"]]
    broken = tmp_path / "root" / "val" / content["images"][1]["file_name"]
    broken.write_bytes(broken.read_bytes()[:-400])
    (tmp_path / "root" / "annotations" / "instances_val.json").write_text(json.dumps(content))
    done = run_entry(*options, "dataset.val.split=val", "splits=[val]", "num_workers=0", ok=False)
    assert f"classes that occur nowhere in val: {CATEGORIES[0]['name']}" in done.stderr
    assert f"val: {broken} cannot be read as an image and may be truncated" in done.stderr


def test_splits_list_the_same_classes_in_the_same_order():
    assert differing_classes({"train": ["a", "b"], "val": ("a", "b")}) == []
    assert len(differing_classes({"train": ["hole", "missing"], "val": ["hole"]})) == 1  # a class of that name
    assert differing_classes({"train": ["a", "b"], "val": ["b", "a"], "test": ["a", "b", "c"]}) == [
        "class 1 is a in train but b in val: both need the same classes in the same order, which in COCO's format is "
        "that of their ids",
        "class 3 is missing in train but c in test: both need the same classes in the same order, which in COCO's "
        "format is that of their ids",
    ]


@pytest.mark.slow
def test_categories_that_differ_between_splits_are_an_error(tmp_path, run_entry):
    for split in ("train2017", "val2017"):
        content = write_coco(tmp_path, images=2, split=split)
    swapped = [{"id": 3, "name": "bar"}, {"id": 1, "name": "disc"}, {"id": 90, "name": "wedge"}]
    file = tmp_path / "annotations" / "instances_val2017.json"
    for categories in (swapped, [*CATEGORIES, {"id": 0, "name": "ring"}]):
        file.write_text(json.dumps(content | {"categories": categories}))
        network = ["backbone=resnet10t", "backbone.pretrained=false", "model.frozen=false", "model.channels=8"]
        options = ["dataset=coco", f"dataset.root={tmp_path}"]
        trained = run_entry("train.py", *options, *network, "logger=none", "device=cpu", ok=False)
        checked = run_entry("check_data.py", *options, f"output={tmp_path / 'check'}", "samples=0", ok=False)
        for done in (trained, checked):
            assert "class 1 is bar in train but" in done.stderr
            assert "Traceback" not in done.stderr


def test_check_data_draws_labels_in_the_colours_of_the_legend(tmp_path, run_entry):
    images, masks = write_binary(tmp_path, number=1)
    colours = "dataset.palette=[[10,200,30],[250,20,240]]"
    check(run_entry, images, masks, "dataset.values=[0,255]", colours, "samples=1", f"hydra.run.dir={tmp_path / 'run'}")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"all_classes.csv", "all_samples.png"}
    pixels = np.array(Image.open(tmp_path / "run" / "all_samples.png").convert("RGB")).reshape(-1, 3)
    for colour in ([10, 200, 30], [250, 20, 240]):
        assert (pixels == colour).all(axis=-1).mean() > 0.1
