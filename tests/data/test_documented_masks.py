"""Masks other than class indices: one test for each row of the table of masks in docs/data.md."""

import numpy as np
import pytest
from documented_tables import DocumentedTable
from PIL import Image
from user_files import MASK, PHOTO, folder, labels, masks, pictures, save

from ccnet.data.reading.label_files import LabelReader
from ccnet.data.reading.label_values import label_values

TABLE = DocumentedTable("masks")


def test_the_documentation_lists_these_masks():
    assert TABLE.documented() == TABLE.tested


@TABLE.row("0 to K - 1, and 255 to ignore")
def test_class_indices(tmp_path):
    mask = MASK.copy()
    mask[0] = 255
    palette = Image.fromarray(mask)
    palette.putpalette([255, 0, 0, 0, 0, 9] * 128)
    palette.save(tmp_path / "palette.png")
    for path in (save(tmp_path / "grey.png", mask), save(tmp_path / "deep.png", mask.astype(np.uint16)),
                 save(tmp_path / "float.tif", mask.astype(np.float32)), tmp_path / "palette.png"):  # fmt: skip
        assert np.array_equal(labels(path), mask), path.name
    with pytest.raises(ValueError, match=r"half\.tif contains fractions"):
        labels(save(tmp_path / "half.tif", mask.astype(np.float32) / 2))


@TABLE.row("0 and 255")
def test_binary_masks(tmp_path):
    binary = (MASK > 0).astype(np.uint8)
    path = save(tmp_path / "a.png", binary * 255)
    assert np.array_equal(labels(path, [0, 255], 2), binary)
    Image.fromarray(binary * 255).convert("1").save(tmp_path / "bits.png")
    assert np.array_equal(labels(tmp_path / "bits.png", [0, 255], 2), binary)
    assert np.array_equal(labels(tmp_path / "bits.png", None, 2), binary)


@TABLE.row("1 to K, with 0 for no data")
def test_one_based_values(tmp_path):
    path = save(tmp_path / "a.png", MASK)
    want = np.where(MASK == 0, 255, MASK - 1)
    for values, classes in (
        ("1-2", 2),
        ([1, 2], ["road", "car"]),
        ({0: "ignore", 1: "road", 2: "car"}, None),
        ({"0": None, "1": 0, "2": 1}, ["road", "car"]),
    ):
        assert np.array_equal(labels(path, values, classes, 0), want), values


@TABLE.row("several values for one class")
def test_merged_values(tmp_path):
    path = save(tmp_path / "a.png", MASK)
    found = label_values({0: "road", 2: "road", 1: "car"}, None)
    assert found.classes == ["road", "car"]
    assert np.array_equal(LabelReader(found.label_ids)(path), np.array([0, 1, 0])[MASK])


@TABLE.row("colours")
def test_colours(tmp_path):
    colours = np.array([[0, 0, 0], [128, 0, 0], [64, 0, 128]], np.uint8)
    path = save(tmp_path / "a.png", colours[MASK])
    for values in (
        colours.tolist(),
        {"0 0 0": "sky", "128 0 0": "road", "[64,0,128]": "car"},
        {"0,0,0": "sky", "128,0,0": "road", "64,0,128": "car"},
    ):
        classes = ["sky", "road", "car"] if isinstance(values, list) else None
        assert np.array_equal(labels(path, values, classes), MASK)
    with pytest.raises(ValueError, match=r"a\.png is a colour image .*\(0 0 0, 64 0 128, 128 0 0\) .*dataset\.values"):
        labels(path)
    with pytest.raises(ValueError, match=r"a\.png contains unknown label values: 64 0 128; this .* defines 2 values"):
        labels(path, {"0 0 0": "sky", "128 0 0": "road"}, None)


@TABLE.row("a table of values and names in a file")
def test_a_file_of_values(tmp_path):
    colours = np.array([[0, 0, 0], [128, 0, 0], [64, 0, 128]], np.uint8)
    path = save(tmp_path / "a.png", colours[MASK])
    table = tmp_path / "classes.txt"
    for text in (
        "0 0 0\tsky\n128 0 0\troad\n64 0 128\tcar of 2 seats\n",
        "name,r,g,b\nsky,0,0,0\nroad,128,0,0\ncar of 2 seats,64,0,128\n",
        "value,name\n# a comment\n\n0,0,0,sky\n128,0,0,road\n64,0,128,car of 2 seats\n",
    ):
        table.write_text(text)
        assert label_values(str(table), None).classes == ["sky", "road", "car of 2 seats"]
        assert np.array_equal(labels(path, str(table), None), MASK)
    table.write_text("0 sky\n1 road\n255 ignore\n", encoding="utf-8-sig")
    assert label_values(str(table), None) == (["sky", "road"], {0: 0, 1: 1, 255: 255})
    for text, told in (
        ("0 sky\nroad\n", "line 2: expected a value and a class name"),
        ("0 sky\n0 car", "0 is listed"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=told):
            label_values(str(table), None)


@TABLE.row("the size of a photo before its EXIF orientation is applied")
def test_masks_that_are_not_turned(tmp_path):
    images, there = pictures(tmp_path / "images", "a.jpg"), masks(tmp_path / "masks", "a.png")
    for turn, told in ((6, "its EXIF orientation says.*turn it in the same way"), (1, "the same size as its image$")):
        exif = Image.Exif()
        exif[0x0112] = turn
        photo = Image.fromarray(PHOTO) if turn == 6 else Image.fromarray(PHOTO).transpose(Image.Transpose.ROTATE_90)
        photo.save(images / "a.jpg", exif=exif)
        with pytest.raises(ValueError, match=f"a label image must be the same size as its image.*{told}|{told}"):
            folder(images, there).read(0)


@TABLE.row("grey masks saved as RGB")
def test_grey_masks_saved_as_rgb(tmp_path):
    path = save(tmp_path / "a.png", np.repeat(MASK[..., None], 3, axis=2))
    assert np.array_equal(labels(path), MASK)


@TABLE.row("any other value")
def test_values_that_the_data_set_does_not_define(tmp_path):
    path = save(tmp_path / "a.png", MASK)
    with pytest.raises(ValueError, match=r"unknown label values: 2; this data set defines 3 values \(0, 1, 255\)"):
        labels(path, None, 2)
    for values, classes, told in (
        ([0], 2, "lists 1 values for 2 classes"),
        ({0: "road", 1: "car"}, ["road"], "has 1 classes"),
        ({0: "road", 1: "car"}, ["road", "sky"], r"names the class 'car', which is not in dataset\.classes"),
        ({0: "road", 1: "ignore"}, ["road", "sky"], "has no value for sky"),
        ({0: "road", "1 2 3": "sky"}, None, "mixes numbers and colours"),
        ([0, "7 7"], 2, "contains '7 7'"),
        (None, None, r"dataset\.classes is not set"),
        (None, "names.txt", r"dataset\.classes=names\.txt: pass a list of names"),
        (None, ["a", "b", "a"], r"dataset\.classes lists a twice"),
    ):
        with pytest.raises(ValueError, match=told):
            label_values(values, classes)
    for ignored, told in (
        (1, r"no value for class 1 besides dataset\.ignore_label=1: map at least one value"),
        (-1, r"dataset\.ignore_label=-1: set it to a whole number from 0 to 65535"),
        ([0, 3], r"dataset\.ignore_label=\[0, 3\]: set it to a whole number .* ignores several"),
    ):
        with pytest.raises(ValueError, match=told):
            label_values(None, 3, ignored)
    with pytest.raises(FileNotFoundError, match="neither a range such as 1-150 nor a file"):
        label_values("/nowhere", 2)
