"""What people have and what happens: one test for each row of the tables in docs/data.md, which it quotes."""

import io
import os
import unicodedata
import zlib

import numpy as np
import PIL
import pytest
import torch
from conftest import ROOT
from PIL import Image, PngImagePlugin

from ccnet.data import contents_of
from ccnet.data.reading.frames import FrameReader, frames_of
from ccnet.data.reading.image_files import UnreadableImage, describe, read_image
from ccnet.data.reading.label_files import LabelReader
from ccnet.data.reading.label_values import label_values
from ccnet.data.sets.folder import Folder

ROWS = {}


def row(text):
    """Register a test for the row of docs/data.md that begins with ``text``."""

    def register(test):
        ROWS[text] = test
        return test

    return register


def test_the_tables_of_the_documentation_have_these_rows():
    page = (ROOT / "docs" / "data.md").read_text().partition("## What people have")[2]
    found = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert [text for text in found if text not in ("images", "masks", "files and folders")] == [*ROWS]


GENERATOR = np.random.default_rng(0)
DEEP = GENERATOR.integers(0, 65536, (20, 30), dtype=np.uint16)
PHOTO = GENERATOR.integers(0, 256, (20, 30, 3), dtype=np.uint8)
MASK = GENERATOR.integers(0, 3, (20, 30), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_png(path, samples, depth, palette=None):
    """Write a PNG of samples (H, W) or (H, W, 3) with a bit depth that Pillow cannot write; return its path."""
    height, width = samples.shape[:2]
    lines = samples.reshape(height, -1)
    bits = [np.unpackbits(line.astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 16 - depth :] for line in lines]
    rows = b"".join(b"\0" + np.packbits(line).tobytes() for line in bits)
    colour = 3 if palette is not None else 2 if samples.ndim == 3 else 0
    chunks = [(b"IHDR", width.to_bytes(4) + height.to_bytes(4) + bytes([depth, colour, 0, 0, 0]))]
    chunks += [(b"PLTE", bytes(palette))] if palette is not None else []
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def grey(path, value_range=None):
    """Return the grey values of an image whose three channels are equal."""
    image = read_image(path, value_range)
    assert image.dtype == torch.uint8
    assert (image == image[:1]).all()
    return image[0].numpy()


@row("16-bit grey PNG or TIFF")
def test_deep_grey(tmp_path):
    for name, pixels in (("a.png", DEEP), ("a.tif", DEEP), ("b.tif", DEEP.astype(">u2"))):
        path = save(tmp_path / name, pixels)
        assert describe(path).startswith("16-bit I;16")
        assert np.array_equal(grey(path), np.round(DEEP / 257))
        assert np.array_equal(grey(path, [0, 4095]), np.round(DEEP.clip(0, 4095) * (255 / 4095)))
    assert np.array_equal(grey(save(tmp_path / "lzw.tif", DEEP, compression="tiff_lzw")), np.round(DEEP / 257))


@row("32-bit grey TIFF, whole numbers or floating point")
def test_32_bits(tmp_path):
    unit = save(tmp_path / "unit.tif", (DEEP / 65535).astype(np.float32))
    assert np.array_equal(grey(unit, [0, 1]), np.round(DEEP / 257))
    assert np.array_equal(grey(unit, [1, 0]), np.round(255 - DEEP / 257))
    holes = (DEEP / 65535).astype(np.float32)
    holes[0, 0] = np.nan
    assert grey(save(tmp_path / "holes.tif", holes), [0, 1])[0, 0] == 0
    whole = save(tmp_path / "whole.tif", DEEP.astype(np.int32) - 1000)
    assert np.array_equal(grey(whole, [-1000, 64535]), np.round(DEEP / 257))
    for path, mode in ((unit, "F, 32-bit floating point"), (whole, "I, 32-bit whole numbers")):
        with pytest.raises(
            ValueError, match=rf"{path.name} has mode {mode} \(here from .*: train with .*value_range="
        ) as told:
            read_image(path)
        assert not isinstance(told.value, UnreadableImage)  # skip_broken must not skip them all


@row("16-bit colour PNG")
def test_16_bit_colour(tmp_path):
    deep = GENERATOR.integers(0, 65536, (4, 5, 3))
    path = write_png(tmp_path / "a.png", deep, 16)
    assert describe(path) == "16-bit RGB"
    assert np.array_equal(read_image(path).permute(1, 2, 0), deep >> 8)
    with pytest.raises(ValueError, match=r"a\.png has 16-bit colours .* value_range=\[0, 4095\] applies to grey"):
        read_image(path, [0, 4095])


@row("grey, palette, 1-bit, CMYK, transparent (LA, RGBA)")
def test_8_bit_modes(tmp_path, recwarn):
    photo = Image.fromarray(PHOTO)
    for name, image, options in (
        ("grey.png", photo.convert("L"), {}),
        ("palette.png", photo.quantize(9), {"transparency": bytes(range(9))}),
        ("bits.png", photo.convert("1"), {}),
        ("cmyk.tif", photo.convert("CMYK"), {}),
        ("la.png", photo.convert("LA"), {}),
        ("rgba.png", photo.convert("RGBA"), {}),
    ):
        image.save(tmp_path / name, **options)
        want = image.convert("RGB")
        assert np.array_equal(read_image(tmp_path / name).permute(1, 2, 0), want), name
    assert not recwarn.list


@row("TIFF with three bands of floating-point numbers, or of 16 bits stored one after the other")
def test_tiffs_that_pillow_cannot_read(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet[bands]'")
    deep, path = GENERATOR.integers(0, 65536, (20, 30, 3), dtype=np.uint16), tmp_path / "a.tif"
    bands = np.moveaxis(deep, -1, 0)
    for pixels, options, value_range in (
        (deep, {"photometric": "minisblack", "planarconfig": "contig"}, None),
        (bands, {"photometric": "rgb", "planarconfig": "separate"}, None),
        (bands, {"photometric": "minisblack", "planarconfig": "separate"}, [0, 65535]),
        ((deep / 65535).astype(np.float32), {"photometric": "rgb"}, [0, 1]),
        (deep / 65535, {"photometric": "rgb"}, [0, 1]),
    ):
        tifffile.imwrite(path, pixels, **options)
        assert np.array_equal(read_image(path, value_range).permute(1, 2, 0), np.round(deep / 257)), options
    tifffile.imwrite(path, PHOTO, photometric="minisblack", planarconfig="contig")
    assert np.array_equal(read_image(path).permute(1, 2, 0), PHOTO)
    tifffile.imwrite(path, bands, photometric="rgb", planarconfig="separate")
    monkeypatch.setattr("ccnet.data.reading.bands._tifffile", lambda: None)
    with pytest.raises(UnreadableImage, match=r"a\.tif stores its 16-bit bands one after the other: .*ccnet\[bands\]"):
        read_image(path)  # Pillow reads it as noise


@row("any other mode, such as LAB")
def test_other_modes(tmp_path):
    if not PIL.__version__.startswith("12."):  # which cannot read the YCbCr TIFF that it writes
        Image.fromarray(PHOTO).convert("RGB").convert("YCbCr").save(tmp_path / "ycc.tif")
        assert read_image(tmp_path / "ycc.tif").shape == (3, 20, 30)
    Image.frombytes("LAB", (30, 20), PHOTO.tobytes()).save(tmp_path / "lab.tif")
    with pytest.raises(ValueError, match=r"lab\.tif has mode LAB, which is not supported: convert it to RGB or grey"):
        read_image(tmp_path / "lab.tif")


@row("a photo with an EXIF orientation or malformed tags")
def test_orientation_beside_odd_tags(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = tmp_path / "a.jpg"
    Image.fromarray(PHOTO).save(photo, exif=exif)
    plain = read_image(save(tmp_path / "plain.jpg", PHOTO))
    assert torch.equal(read_image(photo), plain.rot90(-1, (1, 2)))
    assert describe(photo) == "8-bit RGB, turned upright as EXIF says"
    # A tag of type "signed short" with a value out of range: Pillow reads it, but cannot write it again.
    block = (
        b"Exif\0\0MM\0*\0\0\0\x08\0\x02"
        + bytes.fromhex("0112 0003 00000001 0006 0000")
        + bytes.fromhex("9286 0002 00000004 ffffffff")
    )
    broken = block + b"\0\0\0\0"
    Image.fromarray(PHOTO).save(photo, exif=broken)
    assert torch.equal(read_image(photo), plain.rot90(-1, (1, 2)))
    Image.fromarray(PHOTO).save(photo, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    assert torch.equal(read_image(photo), plain)
    Image.fromarray(PHOTO).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), PHOTO)


@row("a PNG with more than 1 MB of text or colour profile")
def test_large_metadata(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("history", "x" * 2**21, zip=True)
    before = PngImagePlugin.MAX_TEXT_CHUNK
    for mode in ("RGB", "RGBA"):  # a fast decoder may read the former, Pillow reads the latter
        Image.fromarray(PHOTO).convert(mode).save(tmp_path / "a.png", pnginfo=text, icc_profile=bytes(2**21))
        assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), PHOTO)
    assert before == PngImagePlugin.MAX_TEXT_CHUNK


@row("a suffix that does not match the content, such as a GIF named .jpg")
def test_the_content_decides(tmp_path):
    for name, kind in (("gif.jpg", "GIF"), ("jpeg.png", "JPEG"), ("png.tif", "PNG"), ("bmp.jpeg", "BMP")):
        buffer = io.BytesIO()
        Image.fromarray(PHOTO).save(buffer, kind)
        (tmp_path / name).write_bytes(buffer.getvalue())
        buffer.seek(0)
        assert np.array_equal(read_image(tmp_path / name).permute(1, 2, 0), Image.open(buffer).convert("RGB")), name


@row("an animation, or a file with several pages")
def test_several_frames(tmp_path):
    for name in ("a.gif", "a.tif"):
        pages = [Image.fromarray(np.full_like(PHOTO, grey)) for grey in (7, 200)]
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        assert (grey(tmp_path / name) == 7).all()
        frames, read = frames_of(tmp_path / name), FrameReader()
        assert [int(read(tmp_path / name, frame)[0].max()) for frame in frames] == [7, 200]


@row("a truncated file, or a file that is not an image")
def test_unreadable_files(tmp_path):
    path = save(tmp_path / "a.jpg", PHOTO)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableImage, match=r"a\.jpg cannot be read as an image and may be truncated"):
        read_image(path)
    path.write_text("<html>not found</html>")
    with pytest.raises(UnreadableImage, match=r"a\.jpg cannot be read as an image: its content is in none of .* JPEG"):
        read_image(path)


def labels(path, values=None, classes=3, ignore_label=None):
    """Read one mask as ``dataset=folder`` does."""
    return LabelReader(label_values(values, classes, ignore_label).label_ids)(path).numpy()


@row("0 to K - 1, and 255 to ignore")
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
    with pytest.raises(ValueError, match=r"half\.tif contains fractions"):
        labels(save(tmp_path / "half.tif", mask.astype(np.float32) / 2))


@row("0 and 255")
def test_binary_masks(tmp_path):
    binary = (MASK > 0).astype(np.uint8)
    path = save(tmp_path / "a.png", binary * 255)
    assert np.array_equal(labels(path, [0, 255], 2), binary)
    Image.fromarray(binary * 255).convert("1").save(tmp_path / "bits.png")
    assert np.array_equal(labels(tmp_path / "bits.png", [0, 255], 2), binary)
    assert np.array_equal(labels(tmp_path / "bits.png", None, 2), binary)


@row("1 to K, with 0 for no data")
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


@row("several values for one class")
def test_merged_values(tmp_path):
    path = save(tmp_path / "a.png", MASK)
    found = label_values({0: "road", 2: "road", 1: "car"}, None)
    assert found.classes == ["road", "car"]
    assert np.array_equal(LabelReader(found.label_ids)(path), np.array([0, 1, 0])[MASK])


@row("colours")
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


@row("a table of values and names in a file")
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


@row("the size of a photo before its EXIF orientation is applied")
def test_masks_that_are_not_turned(tmp_path):
    images, there = pictures(tmp_path / "images", "a.jpg"), masks(tmp_path / "masks", "a.png")
    for turn, told in ((6, "its EXIF orientation says.*turn it in the same way"), (1, "the same size as its image$")):
        exif = Image.Exif()
        exif[0x0112] = turn
        photo = Image.fromarray(PHOTO) if turn == 6 else Image.fromarray(PHOTO).transpose(Image.Transpose.ROTATE_90)
        photo.save(images / "a.jpg", exif=exif)
        with pytest.raises(ValueError, match=f"a label image must be the same size as its image.*{told}|{told}"):
            folder(images, there).read(0)


@row("grey masks saved as RGB")
def test_grey_masks_saved_as_rgb(tmp_path):
    path = save(tmp_path / "a.png", np.repeat(MASK[..., None], 3, axis=2))
    assert np.array_equal(labels(path), MASK)


@row("a palette of greys that numbers the values anew, as some programs save grey masks")
def test_palettes_of_greys(tmp_path):
    path = write_png(tmp_path / "a.png", np.array([1, 2, 0])[MASK], 2, np.repeat([2, 0, 1], 3).tolist())  # shows MASK
    with pytest.raises(
        ValueError, match=r"a\.png has a palette in which the number 0 is shown as grey 2, and both are"
    ):
        labels(path)
    path = write_png(tmp_path / "b.png", np.minimum(MASK, 1), 1, [0, 0, 0, 255, 255, 255])
    assert np.array_equal(labels(path, [0, 255], 2), np.minimum(MASK, 1))
    assert np.array_equal(labels(path, None, 2), np.minimum(MASK, 1))
    white = write_png(tmp_path / "white.png", np.ones_like(MASK), 1, [0, 0, 0, 255, 255, 255])
    assert (labels(white, [0, 255], 2) == 1).all()
    colours = [48, 48, 48, 255, 0, 0, 0, 255, 0, 9, 9, 99]  # of classes, whose background is a grey
    assert (labels(write_png(tmp_path / "c.png", np.zeros_like(MASK), 2, colours), classes=60) == 0).all()


@row("transparent pixels (LA, RGBA)")
def test_transparent_masks(tmp_path):
    values = {"0 0 0": "sky", "255 0 0": "road", "0 255 0": "car"}
    colours = np.array([[0, 0, 0, 0], [255, 0, 0, 255], [0, 255, 0, 9]], np.uint8)
    assert np.array_equal(labels(save(tmp_path / "a.png", colours[MASK]), values, None), MASK)
    colours[0] = 255, 0, 0, 0  # the class of these pixels was road
    with pytest.raises(
        ValueError, match=r"b\.png has transparent pixels with the value 255 0 0, so that it is unclear"
    ):
        labels(save(tmp_path / "b.png", colours[MASK]), values, None)
    with pytest.raises(ValueError, match=r"c\.png has transparent pixels with the value 1, "):
        labels(save(tmp_path / "c.png", np.stack([np.ones_like(MASK), MASK * 99], axis=2)))


@row("several pages, as of a stack of slices or with a page per class")
def test_masks_of_several_pages(tmp_path):
    pages = [Image.fromarray(MASK), Image.fromarray(MASK[::-1])]
    for name in ("a.tif", "a.gif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        with pytest.raises(ValueError, match=rf"{name} has 2 pages, but a label image must have one: save each page"):
            labels(tmp_path / name)
    smaller = Image.fromarray(MASK[::2, ::2])
    smaller.encoderinfo = {"tiffinfo": {254: 1}}  # a smaller copy, as in a pyramid
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[smaller])
    assert np.array_equal(labels(tmp_path / "b.tif"), MASK)


@row("colours of 16 bits, a TIFF in which 0 is white, a TIFF of 64-bit numbers")
def test_masks_that_programs_read_differently(tmp_path):
    deep = np.repeat(MASK[..., None], 3, axis=2)
    with pytest.raises(ValueError, match=r"a\.png has 16-bit colours \(mode RGB\): save label images with 8 bits"):
        labels(write_png(tmp_path / "a.png", deep, 16))  # whose upper 8 bits are 0
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet[bands]'")
    for mask in (MASK > 0, MASK):  # the former is the kind that tifffile writes for booleans
        tifffile.imwrite(tmp_path / "a.tif", mask, photometric="miniswhite")
        with pytest.raises(ValueError, match=r"a\.tif is a TIFF in which 0 means white: .* save it as an 8-bit PNG"):
            labels(tmp_path / "a.tif", classes=254)
    tifffile.imwrite(tmp_path / "a.tif", MASK.astype(np.int64))
    with pytest.raises(UnreadableImage, match=r"a\.tif is a TIFF of an unsupported kind, such as 64-bit numbers"):
        labels(tmp_path / "a.tif")


@row("any other value")
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


def pictures(root, *names):
    for name in names:
        save(root / name, PHOTO)
    return root


def masks(root, *names):
    for name in names:
        save(root / name, MASK, format=None)
    return root


def folder(images, masks, split="all", **options):
    options = {"classes": 3, "val_share": 0.2} | options
    return Folder(images, masks, split=split, transform=None, **options)


def names(dataset):
    return [dataset.name(index) for index in range(len(dataset))]


@row("hidden files and folders, such as ._a.jpg and .ipynb_checkpoints")
def test_hidden_files_are_skipped(tmp_path):
    images = pictures(tmp_path / "images", "a.jpg", "b/c.jpg", ".ipynb_checkpoints/a-checkpoint.jpg")
    there = masks(tmp_path / "masks", "a.png", "b/c.png")
    (images / "._a.jpg").write_bytes(b"\0\5\x16\7")
    (there / "._a.png").write_bytes(b"\0\5\x16\7")
    assert names(folder(images, there)) == ["a", "b_c"]


@row("masks in .PNG, .tif, .bmp or .gif")
def test_formats_of_masks(tmp_path):
    images = pictures(tmp_path / "images", *(f"{index}.JPG" for index in range(4)))
    there = masks(tmp_path / "masks", "0.PNG", "1.tif", "2.bmp", "3.gif")
    dataset = folder(images, there)
    assert all(np.array_equal(dataset.read_labels(index), MASK) for index in range(4))
    sparse = np.array([0, 2, 5, 255], dtype=np.uint8)[np.minimum(MASK + MASK.T[:20, :1], 3)]
    path = save(tmp_path / "sparse.gif", sparse)  # Pillow renumbers its palette to 0, 1, 2, 3
    assert np.array_equal(labels(path, classes=6), sparse)
    colours = Image.fromarray(sparse)
    colours.putpalette([128, 0, 0, 0, 0, 9, 0, 64, 0, 9, 0, 0, 9, 9, 0, 7, 7, 9] + [0] * 750)
    colours.save(tmp_path / "colours.gif")
    with pytest.raises(ValueError, match=r"colours\.gif is a colour image .*map its colours .*with dataset\.values"):
        labels(tmp_path / "colours.gif", classes=6)
    values = {"128 0 0": "road", "0 64 0": "car", "7 7 9": "sky", "0 0 0": "ignore"}
    want = np.select([sparse == 0, sparse == 2, sparse == 5], [0, 1, 2], 255)
    assert np.array_equal(labels(tmp_path / "colours.gif", values, None), want)


@row("masks in .jpg or .webp")
def test_lossy_masks(tmp_path):
    images = pictures(tmp_path / "images", "0.jpg")
    with pytest.raises(FileNotFoundError, match=r"there is 0\.jpg\. JPEG and WebP change the values .* save .* as PNG"):
        folder(images, masks(tmp_path / "masks", "0.jpg"))


@row("other names, such as NAME_mask.png or 1-mask.png")
def test_names_of_masks(tmp_path):
    images = pictures(tmp_path / "images", "1.jpg", "11.jpg", "sub/1.jpg")
    there = masks(tmp_path / "masks", "1-mask.png", "11-mask.png", "sub/1-mask.PNG")
    assert names(folder(images, there, mask_name="*-mask")) == ["1", "11", "sub_1"]
    assert names(folder(images, there, mask_name="*-mask.png")) == ["1", "11", "sub_1"]
    with pytest.raises(FileNotFoundError) as told:
        folder(images, there)
    assert str(told.value) == (
        f"3 of 3 images have no label image in {there}: {images}/1.jpg needs {there}/1 (.png, .tif, .tiff, .bmp, .gif);"
        " there is 1-mask.png, 11-mask.png, sub/1-mask.PNG. If these are the masks, set dataset.mask_name='*-mask'"
    )
    numbered = pictures(tmp_path / "numbered", "image_7.jpg")
    masks(tmp_path / "numbered", "mask_7.png")
    assert names(folder(numbered, numbered, image_name="image_*", mask_name="mask_*")) == ["image_7"]
    together = pictures(tmp_path / "together", "7.png")
    masks(tmp_path / "together", "7_mask.png")
    assert names(folder(together, together, mask_name="*_mask")) == ["7"]
    with pytest.raises(ValueError, match=r"the name 'mask' of label images must contain one \*"):
        folder(images, there, mask_name="mask")


@row("photos and masks in one folder, such as 7.jpg and 7.png")
def test_photos_and_masks_in_one_folder(tmp_path):
    together = pictures(tmp_path, "7.jpg", "8.JPEG", "sub/7.jpg")
    masks(tmp_path, "7.png", "8.bmp", "sub/7.PNG")
    dataset = folder(together, together)
    assert names(dataset) == ["7", "8", "sub_7"]
    assert all(np.array_equal(dataset.read_labels(index), MASK) for index in range(3))
    pictures(together, "9.png")
    with pytest.raises(FileNotFoundError, match=r"1 of 4 images have no label image in .*9\.png needs .*9 \("):
        folder(together, together)
    pictures(together, "7.tif")
    with pytest.raises(ValueError, match=r"contains two label images of one name: 7\.png and 7\.tif"):
        folder(together, together)


@row("masks in a subfolder of the folder of images")
def test_masks_in_a_subfolder_of_the_images(tmp_path):
    images = pictures(tmp_path, "1.png", "sub/2.png")
    inside = masks(tmp_path / "masks", "1.png", "sub/2.png")
    assert names(folder(images, inside)) == ["1", "sub_2"]


@row("two images, or two masks, with the same name")
def test_two_files_of_one_name(tmp_path):
    images = pictures(tmp_path / "images", "1.jpg", "1.png")
    with pytest.raises(ValueError, match=r"images contains two images of one name: 1\.jpg and 1\.png"):
        folder(images, masks(tmp_path / "masks", "1.png"))


@row("file names that are not valid UTF-8, as from older Windows archives")
def test_file_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"stra\xdfe")
    dataset = folder(pictures(tmp_path / "images", f"{name}.jpg"), masks(tmp_path / "masks", f"{name}.png"))
    assert contents_of(dataset).startswith("1 images, ")
    assert np.array_equal(dataset.read_labels(0), MASK)


@row("accented letters that one program stores as one character and another, as on macOS, as two")
def test_accented_letters(tmp_path):
    one, two = (unicodedata.normalize(form, "M\xfcnchen_1") for form in ("NFC", "NFD"))
    there = masks(tmp_path / "masks", f"{one}.png", "2.png")
    images = pictures(tmp_path / "images", f"{two}.jpg", "2.jpg")
    assert len(folder(images, there)) == 2
    assert len(folder(images, masks(tmp_path / "b", f"{one}_\xe9.png", "2_e\u0301.png"), mask_name="*_\xe9")) == 2
    lists = {"val": tmp_path / "val.txt"}
    lists["val"].write_text(f"{one}\n", encoding="utf-8")
    assert folder(images, there, "val", lists=lists).image_path(0) == images / f"{two}.jpg"


@row("masks without an image")
def test_masks_without_an_image(tmp_path):
    images, there = (
        pictures(tmp_path / "images", "1.jpg"),
        masks(tmp_path / "masks", "1_mask.png", "2_mask.png", "x.png"),
    )
    assert folder(images, there, mask_name="*_mask").masks_without_image() == [there / "2_mask.png"]
    together = masks(pictures(tmp_path / "both", "1.jpg"), "1.png")
    assert folder(together, together).masks_without_image() == []


@row("names that differ in upper and lower case")
def test_names_that_differ_in_case(tmp_path):
    images, there = pictures(tmp_path / "images", "IMG_1.JPG"), masks(tmp_path / "masks", "img_1.png")
    with pytest.raises(FileNotFoundError, match=r"there is img_1\.png\. Upper and lower case differ: rename the files"):
        folder(images, there)
    images, there = pictures(tmp_path / "b", "1.jpg"), masks(tmp_path / "c", "1.png")
    with pytest.raises(
        FileNotFoundError, match=r"there is 1\.png\. If these are the masks, set dataset\.mask_name='\*'"
    ):
        folder(images, there, mask_name="*_L")


@row("folders for train, val and test")
def test_folders_of_splits(tmp_path):
    places = {
        split: pictures(tmp_path / split / "images", *(f"{split}{index}.jpg" for index in range(5)))
        for split in ("train", "val", "test")
    }
    there = {
        split: masks(tmp_path / split / "masks", *(f"{split}{index}.png" for index in range(5))) for split in places
    }
    for split in places:
        assert names(folder(places, there, split)) == [f"{split}{index}" for index in range(5)]
    pictures(places["val"], "train0.jpg")
    masks(there["val"], "train0.png")
    everything = folder(places, there, "all")
    assert (len(everything), names(everything)[0], names(everything)[5]) == (16, "1_train0", "2_train0")
    lists = {split: str(tmp_path / f"{split}.txt") for split in ("train", "val")}  # of images in these folders
    for split in lists:
        (tmp_path / f"{split}.txt").write_text("train0\n")
        assert folder(places, there, split, lists=lists).image_path(0) == places[split] / "train0.jpg"
    with pytest.raises(ValueError, match=r"dataset\.images has the key valid: its keys are train, val, test"):
        folder({"train": places["train"], "valid": places["val"]}, there, "val")
    del places["val"]  # drawn from train
    drawn = [names(folder(places, there, split)) for split in ("train", "val")]
    assert drawn == [["train0", "train1", "train3", "train4"], ["train2"]]


@row("folders of splits that are the same, or inside one another")
def test_folders_of_splits_that_overlap(tmp_path):
    images = pictures(tmp_path / "images", "1.jpg", "2.jpg", "val/3.jpg")
    there = masks(tmp_path / "masks", "1.png", "2.png", "val/3.png")
    (tmp_path / "link").symlink_to(images / "val")
    for val in (images, images / "val", tmp_path / "link"):
        for split in ("train", "all"):
            with pytest.raises(
                ValueError, match=r"images\.train=.* contains dataset\.images\.val=.* be in both splits"
            ):
                folder(
                    {"train": images, "val": val},
                    there if val == images else {"train": there, "val": there / "val"},
                    split,
                )
    assert names(folder({"train": images, "val": images / "val"}, {"train": there, "val": there / "val"}, "val")) == [
        "3"
    ]
    with pytest.raises(ValueError, match=r"images\.test=.* contains dataset\.images\.train"):
        folder({"train": images / "val", "test": images}, {"train": there / "val", "test": there}, "train")
    (tmp_path / "train.txt").write_text("1\n")
    (tmp_path / "val.txt").write_text("2\n")
    lists = {split: str(tmp_path / f"{split}.txt") for split in ("train", "val")}
    assert names(folder({"train": images, "val": images}, there, "train", lists=lists)) == ["1"]


@row("lists of names")
def test_lists_of_names(tmp_path):
    images = pictures(tmp_path / "images", "a.jpg", "b c.jpg", "sub/d.jpg")
    there = masks(tmp_path / "masks", "a.png", "b c.png", "sub/d.png")
    lists = {split: str(tmp_path / f"{split}.txt") for split in ("train", "val")}
    (tmp_path / "train.txt").write_text("sub/d\na.jpg\n", encoding="utf-8-sig")
    (tmp_path / "val.txt").write_text("b c\n")
    assert names(folder(images, there, "train", lists=lists)) == ["sub_d", "a"]
    assert names(folder(images, there, "val", lists=lists)) == ["b c"]
    (tmp_path / "val.txt").write_text(f"{images}/b c.jpg\n")
    assert names(folder(images, there, "val", lists=lists)) == ["b c"]
    (tmp_path / "val.txt").write_text(f"{tmp_path}/b c.jpg\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 1: '.*/b c\.jpg' points outside .*images"):
        folder(images, there, "val", lists=lists)
    (tmp_path / "val.txt").write_text("b c\n")
    with pytest.raises(ValueError, match=r"split=test has no images: list it in dataset\.lists"):
        folder(images, there, "test", lists=lists)
    (tmp_path / "val.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 1: a is also in the list of train"):
        folder(images, there, "val", lists=lists)
    for text in ("b c\nsub/d\nb c.jpg\n", "b c\r\nsub/d\r\n./b c\r\n"):
        (tmp_path / "val.txt").write_text(text, newline="")
        with pytest.raises(ValueError, match=r"val\.txt, line 3: b c is listed twice"):
            folder(images, there, "val", lists={"val": lists["val"]})
    (tmp_path / "val.txt").write_bytes("b c".encode("utf-16"))
    with pytest.raises(ValueError, match=r"val\.txt is not a UTF-8 text file, save it as UTF-8"):
        folder(images, there, "val", lists=lists)
    (tmp_path / "val.txt").write_text("e\n")
    with pytest.raises(FileNotFoundError, match=r"val\.txt, line 1: e is not an image"):
        folder(images, there, "val", lists=lists)
    with pytest.raises(ValueError, match=r"dataset\.lists has the key valid: its keys are train, val, test"):
        folder(images, there, "train", lists={"train": lists["train"], "valid": lists["val"]})
    with pytest.raises(ValueError, match=r"dataset\.lists=.*train\.txt: set a file for each split"):
        folder(images, there, "train", lists=lists["train"])


@row("one folder for all splits")
def test_fractions(tmp_path):
    stems = [f"{index:02d}" for index in range(20)]
    images = pictures(tmp_path / "images", *(f"{stem}.jpg" for stem in stems))
    there = masks(tmp_path / "masks", *(f"{stem}.png" for stem in stems))
    parts = [names(folder(images, there, split, test_share=0.1)) for split in ("train", "val", "test")]
    assert sorted(name for part in parts for name in part) == stems
    assert [len(part) for part in parts] == [14, 4, 2]
    assert parts[1] == names(folder(images, there, "val")) == ["02", "07", "12", "17"]  # as in earlier versions
    with pytest.raises(ValueError, match=r"split=test has no images: set dataset\.test_share"):
        folder(images, there, "test")
    with pytest.raises(ValueError, match=r"val_share=0\.8, dataset\.test_share=0\.3: set fractions"):
        folder(images, there, "val", val_share=0.8, test_share=0.3)


@row("frames of the same video, or slices of the same patient")
def test_groups_stay_together(tmp_path):
    stems = [f"p{patient}_{number}" for patient in range(10) for number in range(1 + patient % 3)]
    images = pictures(tmp_path / "images", *(f"{stem}.jpg" for stem in stems))
    there = masks(tmp_path / "masks", *(f"{stem}.png" for stem in stems))
    options = {"group": r"^(p\d+)_", "test_share": 0.2}
    parts = [names(folder(images, there, split, **options)) for split in ("train", "val", "test")]
    assert sorted(name for part in parts for name in part) == sorted(stems)
    patients = [{stem.partition("_")[0] for stem in part} for part in parts]
    assert not (patients[0] & patients[1] or patients[1] & patients[2] or patients[0] & patients[2])
    assert [len(part) for part in parts] == [11, 4, 4]
    with pytest.raises(ValueError, match=r"dataset\.group='\(' is not a regular expression: missing \)"):
        folder(images, there, "val", group="(")
    with pytest.raises(ValueError, match=r"dataset\.group='frame' does not match p0_0"):
        folder(images, there, "val", group="frame")
    with pytest.raises(ValueError, match=r"1 groups of images cannot be divided into train, val: 2 are needed"):
        folder(images, there, "val", group="^p")


@row("a single image")
def test_a_single_image(tmp_path):
    images, there = pictures(tmp_path / "images", "a.jpg"), masks(tmp_path / "masks", "a.png")
    assert names(folder(images, there)) == ["a"]
    with pytest.raises(ValueError, match=r"1 images cannot be divided .* choose the split 'all'"):
        folder(images, there, "train")
