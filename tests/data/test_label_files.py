"""Label files of every kind are read; errors name the file and its invalid value."""

import numpy as np
import pytest
from conftest import write_pair
from made_roots import read_folder
from PIL import Image

from ccnet.data.reading.label_files import LabelReader, UnknownLabels


def test_errors_name_a_label_value_out_of_range(folder_data):
    images, masks = folder_data
    write_pair(images / "4.jpg", masks / "4.png", classes=5)
    with pytest.raises(
        ValueError, match=r"4\.png contains unknown label values: 3, 4; this data set defines 4 values.*0 to 2, 255"
    ):
        read_folder(images, masks)[4]


def test_errors_name_a_mask_of_another_size(folder_data):
    images, masks = folder_data
    Image.new("L", (30, 20)).save(masks / "1.png")
    with pytest.raises(ValueError, match=r"1\.png has 30x20 pixels and .*1\.jpg 64x48"):
        read_folder(images, masks)[1]


def test_a_colour_mask_is_rejected(folder_data):
    images, masks = folder_data
    Image.new("RGB", (64, 48), (128, 0, 0)).save(masks / "0.png")
    with pytest.raises(ValueError, match=r"0\.png is a colour image \(mode RGB\)"):
        read_folder(images, masks)[0]


def test_a_one_bit_mask_is_read(folder_data):
    images, masks = folder_data
    Image.fromarray(np.array(Image.open(masks / "0.png")) > 0).save(masks / "0.png")
    assert Image.open(masks / "0.png").mode == "1"
    assert read_folder(images, masks)[0][1].unique().tolist() == [0, 1]


def test_a_palette_mask_is_read_by_index(folder_data):
    images, masks = folder_data
    image = Image.fromarray(np.array(Image.open(masks / "0.png")))
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200] + [0] * 759)
    image.save(masks / "0.png")
    assert read_folder(images, masks)[0][1].unique().tolist() == [0, 1, 2]


def test_more_classes_than_uint8_labels_can_have_are_refused():
    for highest in (254, 299):
        with pytest.raises(ValueError, match=f"mapped to class {highest}: classes are numbered from 0 to 253"):
            LabelReader({index: index for index in range(highest + 1) if index != 255} | {1000: 255})


@pytest.mark.parametrize(
    "label_ids",
    [
        {value: value for value in (*range(150), 255)},
        {value: (value - 1) % 256 for value in range(151)},  # ADE20K: 0 is ignored
        {value: value for value in range(254)} | {255: 255},
        {0: 1, 1: 0, 7: 2},
        {0: 255, 255: 0},
        {255: 7, 0: 8, 1: 9, 3: 11},
    ],
)
def test_each_value_becomes_its_class_and_no_other_is_accepted(tmp_path, label_ids):
    read, path = LabelReader(label_ids), tmp_path / "mask.png"
    for values in (sorted(label_ids), sorted(label_ids)[:2], sorted(label_ids)[-2:]):
        Image.fromarray(np.array([values], dtype=np.uint8)).save(path)
        assert read(path).tolist() == [[label_ids[value] for value in values]]
    for unknown in sorted(set(range(256)) - set(label_ids)):
        Image.fromarray(np.array([[min(label_ids), unknown]], dtype=np.uint8)).save(path)
        with pytest.raises(UnknownLabels, match=f"unknown label values: {unknown};"):
            read(path)
