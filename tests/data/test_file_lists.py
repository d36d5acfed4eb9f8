"""Errors name missing images and labels."""

import pytest
from made_roots import read_folder

from ccnet.data.sets.camvid import CamVid
from ccnet.data.transforms import eval_transform


def test_errors_name_an_image_without_labels(folder_data):
    images, masks = folder_data
    (masks / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 6 images have no label image.*3\.jpg"):
        read_folder(images, masks)


def test_errors_do_not_list_hidden_files(folder_data):
    images, masks = folder_data
    for path in masks.iterdir():
        path.rename(masks / f"._{path.name}")
    with pytest.raises(FileNotFoundError, match=r"6 of 6 images have no label image.*; there is nothing$"):
        read_folder(images, masks)


def test_errors_name_a_listed_file_that_is_missing(camvid_root):
    (camvid_root / "trainannot" / "0001TP_000002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt: missing images.*trainannot/0001TP_000002\.png"):
        CamVid(camvid_root, split="train", transform=eval_transform())


def test_errors_name_a_line_that_is_not_a_pair(camvid_root):
    with open(camvid_root / "train.txt", "a") as file:
        file.write("train/0001TP_000002.png\n")
    with pytest.raises(
        ValueError, match=r"train\.txt, line \d+: expected 'image label', got 'train/0001TP_000002\.png'"
    ):
        CamVid(camvid_root, split="train", transform=None)
