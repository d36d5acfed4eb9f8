"""Masks other than class indices: one test for each row of the table of masks in docs/data.md."""

import numpy as np
import pytest
from documented_tables import DocumentedTable
from PIL import Image
from user_files import MASK, PHOTO, folder, labels, masks, pictures, save, write_png

from ccnet.data.reading.image_files import UnreadableImage
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
    for bits in (2, 4):  # Pillow scales these to 0, 85, 170, 255, or in steps of 17
        assert np.array_equal(labels(write_png(tmp_path / "few.png", MASK, bits), classes=100), MASK)
    assert np.array_equal(labels(write_png(tmp_path / "few.png", MASK, 2), [0, 85, 170]), MASK)
    for pixels in (mask.astype(np.float32) / 2, np.where(mask == 255, np.float32(np.nan), mask)):
        with pytest.raises(ValueError, match=r"half\.tif contains fractions or NaN"):
            labels(save(tmp_path / "half.tif", pixels))


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
    with pytest.raises(ValueError, match=r"a\.png is a colour image .*\(0 0 0, 64 0 128, 128 0 0\) .*dataset=folder"):
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
    table.write_text('name,value\n"sky",0\n"road, wet",1\n"6"" kerb",2\n')  # as spreadsheets and pandas write it
    assert label_values(str(table), None).classes == ["sky", "road, wet", '6" kerb']
    table.write_text("0 sky\n1 road\n255 ignore\n", encoding="utf-8-sig")
    assert label_values(str(table), None) == (["sky", "road"], {0: 0, 1: 1, 255: 255})
    for text, told in (
        ("0 sky\nroad\n", "line 2: expected a value and a class name"),
        ("0 sky\n0 car", "0 is listed"),
        ("id,name,r,g,b\n0,sky,70,130,180\n", r"line 2: .* and no other columns: '0,sky,70,130,180'"),
        ("name,id,trainId\nsky,23,10\n", r"line 2: .* and no other columns"),
        ("0,sky,nature\n1,ignore,void\n", r"line 1: .* no other columns: '0,sky,nature'; names that contain"),
        ("0;sky;\n", "line 1: .* and no other columns"),
        ("0,3D model\n", r"names that contain a comma or begin with a digit need quotes"),
        ("id,name\n#ff0000,sky\n", r"classes\.txt has no lines with a value and a class name"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=told):
            label_values(str(table), None)


@pytest.mark.parametrize("value", [1.5, None, True, "x", "-1", "#000001", ["1", "2", "x"], [1, 2], 2**16])
def test_what_is_neither_a_number_nor_a_colour_is_no_value(value):
    with pytest.raises(ValueError, match=r"dataset\.values contains .*: a value is a whole number from 0 to 65535"):
        label_values([0, value], ["sky", "road"])


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


@TABLE.row("a palette of greys whose indices differ from the grey values, as some programs save grey masks")
def test_palettes_of_greys(tmp_path):
    path = write_png(tmp_path / "a.png", np.array([1, 2, 0])[MASK], 2, np.repeat([2, 0, 1], 3).tolist())  # shows MASK
    with pytest.raises(
        ValueError, match=r"a\.png has a palette in which the number 0 is shown as grey 2, and both are"
    ):
        labels(path)
    path = write_png(tmp_path / "b.png", np.minimum(MASK, 1), 1, [0, 0, 0, 255, 255, 255])
    assert np.array_equal(labels(path, [0, 255], 2), np.minimum(MASK, 1))
    assert np.array_equal(labels(path, None, 2), np.minimum(MASK, 1))
    ignored = write_png(tmp_path / "ignored.png", MASK, 2, np.repeat([0, 3, 255], 3).tolist())
    assert np.array_equal(labels(ignored, [0, 3], 2), np.array([0, 1, 255])[MASK])
    with pytest.raises(ValueError, match=r"the number 1 is shown as grey 3, and both are values of classes"):
        labels(ignored, classes=19)
    white = write_png(tmp_path / "white.png", np.ones_like(MASK), 1, [0, 0, 0, 255, 255, 255])
    assert (labels(white, [0, 255], 2) == 1).all()
    colours = [48, 48, 48, 255, 0, 0, 0, 255, 0, 9, 9, 99]  # of classes, whose background is a grey
    assert (labels(write_png(tmp_path / "c.png", np.zeros_like(MASK), 2, colours), classes=60) == 0).all()


@TABLE.row("transparent pixels (LA, RGBA)")
def test_transparent_masks(tmp_path):
    values = {"0 0 0": "sky", "255 0 0": "road", "0 255 0": "car"}
    colours = np.array([[0, 0, 0, 0], [255, 0, 0, 255], [0, 255, 0, 9]], np.uint8)
    assert np.array_equal(labels(save(tmp_path / "a.png", colours[MASK]), values, None), MASK)
    colours[0] = 255, 0, 0, 0  # the class of these pixels was road
    with pytest.raises(
        ValueError, match=r"b\.png has transparent pixels with the value 255 0 0, so that it is unclear"
    ):
        labels(save(tmp_path / "b.png", colours[MASK]), values, None)
    colours[:, 3] = 0
    everywhere = labels(save(tmp_path / "all.png", colours[MASK]), values, None)  # as some simulators write them
    assert np.array_equal(everywhere, np.array([1, 1, 2])[MASK])
    with pytest.raises(ValueError, match=r"c\.png has transparent pixels with the value 1, "):
        labels(save(tmp_path / "c.png", np.stack([np.ones_like(MASK), MASK * 99], axis=2)))


@TABLE.row("several pages, such as a stack of slices or a page per class")
def test_masks_of_several_pages(tmp_path):
    pages = [Image.fromarray(MASK), Image.fromarray(MASK[::-1])]
    for name in ("a.tif", "a.gif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        with pytest.raises(ValueError, match=rf"{name} has 2 pages, but a label image must have one: save each page"):
            labels(tmp_path / name)
    for kind in (1, 4):  # a smaller copy, as in a pyramid, and the pixels that have data, as GDAL stores them
        other = Image.fromarray(MASK[::2, ::2] if kind == 1 else MASK > 0)
        other.encoderinfo = {"tiffinfo": {254: kind}}
        pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[other])
        assert np.array_equal(labels(tmp_path / "b.tif"), MASK)


@TABLE.row("colours of 16 bits, a TIFF in which 0 is white, a TIFF of 64-bit numbers")
def test_masks_that_programs_read_differently(tmp_path):
    deep = np.repeat(MASK[..., None], 3, axis=2)
    with pytest.raises(ValueError, match=r"a\.png has 16-bit colours \(mode RGB\): save label images with 8 bits"):
        labels(write_png(tmp_path / "a.png", deep, 16))  # whose upper 8 bits are 0
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    for mask in (MASK > 0, MASK, MASK.astype(np.uint16)):  # the first is the kind that tifffile writes for booleans
        tifffile.imwrite(tmp_path / "a.tif", mask, photometric="miniswhite")
        with pytest.raises(ValueError, match=r"a\.tif is a TIFF in which 0 means white: .* save it as an 8-bit PNG"):
            labels(tmp_path / "a.tif", classes=254)
    tifffile.imwrite(tmp_path / "a.tif", MASK.astype(np.int64))
    with pytest.raises(UnreadableImage, match=r"a\.tif is a TIFF of an unsupported kind, such as 64-bit numbers"):
        labels(tmp_path / "a.tif")


@TABLE.row("any other value")
def test_values_that_the_data_set_does_not_define(tmp_path):
    path = save(tmp_path / "a.png", MASK)
    with pytest.raises(ValueError, match=r"unknown label values: 2; this data set defines 3 values \(0, 1, 255\)"):
        labels(path, None, 2)
    for values, classes, told in (
        ([0], 2, "lists 1 values for 2 classes"),
        ({0: "road", 1: "car"}, ["road"], "has 1 classes"),
        ({0: "road", 1: "car"}, ["road", "sky"], r"names the class 'car', which is not in dataset\.classes"),
        ({0: 0, 1: 1, 2: 2}, ["road", "sky"], r"names the class 2, which is not in dataset\.classes"),
        ({0: 0, 1: 1, 2: -1}, ["road", "sky"], "names the class -1"),
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
