"""A missing data folder fails immediately: before torch is imported, with the expected layout in the message."""

import inspect
import re

import pytest
from conftest import ROOT, configured, run_python
from hydra.utils import get_class

import ccnet.data.sets
from ccnet.data.roots import _LAYOUTS, check_root

CHILD = """
import sys
from hydra import compose, initialize_config_dir
from ccnet.data import check_root
with initialize_config_dir(config_dir=sys.argv[1], version_base="1.3"):
    config = compose("config", overrides=sys.argv[2:])
try:
    check_root(config.dataset)
except FileNotFoundError as error:
    print(error)
print("imported:", [name for name in ("torch", "numpy", "PIL") if name in sys.modules])
"""


def dataset_config(*overrides):
    return configured(*overrides).dataset


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ["dataset=camvid", "dataset.root=/nowhere"],
            ["dataset.root=/nowhere is not a folder: CamVid was expected there", "ROOT/trainannot/NAME.png", "SegNet"],
        ),
        (["dataset=folder", "dataset.images=/nowhere"], ["dataset.images=/nowhere is not a folder: pass the folders"]),
    ],
    ids=["camvid", "folder"],
)
def test_a_missing_folder_fails_before_torch_is_imported(overrides, messages):
    printed = run_python("-c", CHILD, ROOT / "conf", *overrides)
    assert all(message in printed for message in messages)
    assert printed.endswith("imported: []\n")


@pytest.mark.parametrize(
    "name", ["ade20k", "camvid", "camvid_full", "camvid_video", "cityscapes", "coco", "lip", "voc"]
)
def test_errors_show_the_layout_of_every_data_set_on_disk(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.root is not set: pass the folder of"):
        check_root(dataset_config(f"dataset={name}"))
    with pytest.raises(FileNotFoundError, match=r"(?s)lacks .*The layout of .*ROOT/.*Where to get it: "):
        check_root(dataset_config(f"dataset={name}", f"dataset.root={tmp_path}"))


def test_the_error_for_voc_without_sbd_says_how_to_train_without_it(tmp_path):
    for part in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (tmp_path / "VOC2012" / part).mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / "VOC2012" / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("2007_000032\n")
    with pytest.raises(FileNotFoundError, match=r"(?s)lacks .*train_aug\.txt.*set dataset\.train\.split=train$"):
        check_root(dataset_config("dataset=voc", f"dataset.root={tmp_path}"))
    check_root(dataset_config("dataset=voc", f"dataset.root={tmp_path}", "dataset.train.split=train"))


def test_the_chosen_splits_are_checked(camvid_root):
    config = dataset_config("dataset=camvid", f"dataset.root={camvid_root}")
    check_root(config)
    with pytest.raises(FileNotFoundError, match=re.escape("lacks test.txt of CamVid")):
        check_root(config, ["test"])


def test_embedded_and_foreign_data_sets_need_no_folder():
    check_root(dataset_config("dataset=synthetic"))
    check_root(dataset_config("dataset=camvid", "dataset.train._target_=my.CamVid", "dataset.val._target_=my.CamVid"))


def test_every_class_with_a_root_has_a_layout():
    with_root = {
        f"{module.removeprefix('ccnet.data.sets.')}.{name}"
        for name in ccnet.data.sets.__all__
        for module in [getattr(ccnet.data.sets, name).__module__]
        if "root" in inspect.signature(getattr(ccnet.data.sets, name)).parameters
    }
    assert with_root == {*_LAYOUTS, "camvid_video.CamVidVideo"}
    assert all(get_class(f"ccnet.data.sets.{name}") for name in _LAYOUTS)
