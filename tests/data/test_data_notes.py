"""check_data.py notes what it cannot call wrong: copies in two splits, dark images, masks without an image."""

import shutil

import numpy as np
import pytest
from coco_data import write_coco
from conftest import configured, write_pair
from PIL import Image
from user_files import write_png

from ccnet.data.inspection import inspect_dataset
from ccnet.data.label_checks import shared_images
from ccnet.data.sets import Folder
from ccnet.engine.evaluation.tasks.semantic import Semantic
from ccnet.train import _data_sets


def reports(root, lists):
    return {
        split: inspect_dataset(
            Folder(root / "images", root / "masks", classes=3, split=split, val_share=0.2, transform=None, lists=lists)
        )
        for split in ("train", "val", "all")
    }


def test_copies_in_two_splits_are_found(tmp_path):
    for name in ("a", "b", "c"):
        write_pair(tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png", classes=3, seed=ord(name))
    for split, names in (("train", "a b"), ("val", "c copy")):
        (tmp_path / f"{split}.txt").write_text(names.replace(" ", "\n"))
    lists = {split: str(tmp_path / f"{split}.txt") for split in ("train", "val")}
    shutil.copy(tmp_path / "masks" / "a.png", tmp_path / "masks" / "copy.png")
    picture = Image.open(tmp_path / "images" / "a.png")
    picture.save(tmp_path / "images" / "copy.bmp")
    assert shared_images(reports(tmp_path, lists)) == [
        "images with the same pixels in train and val, which make scores too high: 1, such as a and copy; remove the "
        "copies; dataset=folder also has dataset.group and dataset.lists",
        "images with the same pixels, which make scores too high if they are in different splits: 2, such as a and "
        "copy; remove the copies; dataset=folder also has dataset.group and dataset.lists",
    ]
    picture.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "images" / "copy.bmp")
    assert shared_images(reports(tmp_path, lists)) == []


def test_notes_are_printed(tmp_path, run_entry):
    for name in "abc":
        write_pair(tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png", classes=3, seed=ord(name))
        grey = np.array(Image.open(tmp_path / "images" / f"{name}.png").convert("L"), dtype=np.uint16)
        Image.fromarray(grey * 16).save(tmp_path / "images" / f"{name}.png")
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / "b.png")  # "b" is the validation image
    shutil.copy(tmp_path / "masks" / "a.png", tmp_path / "masks" / "spare.png")
    folders = f"dataset.images={tmp_path / 'images'}", f"dataset.masks={tmp_path / 'masks'}", "dataset.classes=3"
    options = ("check_data.py", "dataset=folder", *folders, "num_workers=0", "samples=0")
    told = run_entry(*options).stdout
    assert "note: images with the same pixels in train and val, which make scores too high: 1, such as a and b" in told
    assert "note: masks that belong to no image and are not used: 1, such as " in told
    assert "note: images of more than 8 bits are nearly black" in told
    for value_range in ("[0,4095]", "[0,65000]"):  # images that are dark in the range that was chosen are dark
        assert "nearly black" not in run_entry(*options, f"dataset.value_range={value_range}").stdout
    for name in "ab":  # dataset.value_range does not apply to colours, nor to arrays of 8 bits
        write_png(tmp_path / "images" / f"{name}.png", np.full((48, 64, 3), ord(name)), 16)
    (tmp_path / "images" / "c.png").unlink()
    np.save(tmp_path / "images" / "c.npy", np.ones((48, 64, 3), np.uint8))
    assert "nearly black" not in run_entry(*options).stdout


def test_training_warns_of_masks_without_an_image_and_does_not_search_the_folders_again(tmp_path, monkeypatch):
    """As when only half of the images were copied."""
    for name in "abcd":
        write_pair(tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png", classes=2)
    folders = f"dataset.images={tmp_path / 'images'}", f"dataset.masks={tmp_path / 'masks'}", "dataset.classes=2"
    config = configured("dataset=folder", *folders)
    monkeypatch.setattr("ccnet.data.sets.folder.without_image", None)
    assert _data_sets(config, Semantic())[2] == []
    for name in "ad":
        (tmp_path / "images" / f"{name}.png").unlink()
    told = f"masks that belong to no image and are not used: 2, such as {tmp_path / 'masks' / 'a.png'}"
    assert _data_sets(config, Semantic())[2] == [told]


@pytest.mark.slow
def test_copies_in_two_splits_of_objects_are_found(tmp_path, run_entry):
    for split in ("train2017", "val2017"):  # with the same seed, they have the same images
        write_coco(tmp_path, images=2, split=split)
    told = run_entry("check_data.py", "dataset=coco", f"dataset.root={tmp_path}", "num_workers=0", "samples=0").stdout
    assert (
        "note: images with the same pixels in train and val, which make scores too high: 2, such as 000000000010"
        in told
    )
