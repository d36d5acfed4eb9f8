"""Images other than 8-bit RGB: one test for each row of the table of images in docs/data.md."""

import io

import numpy as np
import PIL
import pytest
import torch
from documented_tables import DocumentedTable
from PIL import Image, PngImagePlugin
from user_files import DEEP, PHOTO, save, write_png

from ccnet.data.reading.frames import FrameReader, frames_of
from ccnet.data.reading.image_files import UnreadableImage, describe, read_image

TABLE = DocumentedTable("images")


def test_the_documentation_lists_these_images():
    assert TABLE.documented() == TABLE.tested


def grey(path, value_range=None):
    """Return the grey values of an image whose three channels are equal."""
    image = read_image(path, value_range)
    assert image.dtype == torch.uint8
    assert (image == image[:1]).all()
    return image[0].numpy()


@TABLE.row("16-bit grey PNG or TIFF")
def test_deep_grey(tmp_path):
    for name, pixels in (("a.png", DEEP), ("a.tif", DEEP), ("b.tif", DEEP.astype(">u2"))):
        path = save(tmp_path / name, pixels)
        assert describe(path).startswith("16-bit I;16")
        assert np.array_equal(grey(path), np.round(DEEP / 257))
        assert np.array_equal(grey(path, [0, 4095]), np.round(DEEP.clip(0, 4095) * (255 / 4095)))
    assert np.array_equal(grey(save(tmp_path / "lzw.tif", DEEP, compression="tiff_lzw")), np.round(DEEP / 257))


@TABLE.row("32-bit grey TIFF, whole numbers or floating point")
def test_32_bits(tmp_path):
    unit = save(tmp_path / "unit.tif", (DEEP / 65535).astype(np.float32))
    assert np.array_equal(grey(unit, [0, 1]), np.round(DEEP / 257))
    assert np.array_equal(grey(unit, [1, 0]), np.round(255 - DEEP / 257))
    holes = (DEEP / 65535).astype(np.float32)
    holes[0, 0] = np.nan
    assert grey(save(tmp_path / "holes.tif", holes), [0, 1])[0, 0] == 0
    whole = save(tmp_path / "whole.tif", DEEP.astype(np.int32) - 1000)
    assert np.array_equal(grey(whole, [-1000, 64535]), np.round(DEEP / 257))
    far = save(tmp_path / "far.tif", DEEP.astype(np.int32) + 2**30)
    assert np.array_equal(grey(far, [2**30, 2**30 + 65535]), np.round(DEEP / 257))
    assert np.array_equal(grey(far, [2**30, 2**30 + 255]), DEEP.clip(0, 255))
    for path, mode in ((unit, "F, 32-bit floating point"), (whole, "I, 32-bit whole numbers")):
        with pytest.raises(
            ValueError, match=rf"{path.name} has mode {mode} \(here from .*: train with .*value_range="
        ) as told:
            read_image(path)
        assert not isinstance(told.value, UnreadableImage)  # skip_broken must not skip them all
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    tifffile.imwrite(tmp_path / "unsigned.tif", DEEP.astype(np.uint32) << 16)
    assert np.array_equal(grey(tmp_path / "unsigned.tif", [0, 65535 << 16]), np.round(DEEP / 257))
    assert describe(tmp_path / "unsigned.tif") == "32-bit I"


@TABLE.row("8-bit grey TIFF of signed numbers")
def test_signed_8_bits(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    tifffile.imwrite(tmp_path / "a.tif", signed := (DEEP >> 8).astype(np.uint8).view(np.int8))
    assert np.array_equal(grey(tmp_path / "a.tif", [-128, 127]), signed + np.int16(128))
    with pytest.raises(ValueError, match=r"signed 8-bit numbers \(here from -128 to 127\): train with .*value_range="):
        read_image(tmp_path / "a.tif")


@TABLE.row("grey TIFF in which 0 is white")
def test_white_is_zero(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    for values in (DEEP, (DEEP >> 8).astype(np.uint8)):
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
        assert np.array_equal(grey(tmp_path / "a.tif"), 255 - np.round(values / np.iinfo(values.dtype).max * 255))
    tifffile.imwrite(tmp_path / "a.tif", DEEP, photometric="miniswhite")
    assert np.array_equal(grey(tmp_path / "a.tif", [65535, 0]), grey(tmp_path / "a.tif"))


@TABLE.row("16-bit colour PNG")
def test_16_bit_colour(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (4, 5, 3))
    path = write_png(tmp_path / "a.png", deep, 16)
    assert describe(path) == "16-bit RGB"
    assert np.array_equal(read_image(path).permute(1, 2, 0), deep >> 8)
    with pytest.raises(ValueError, match=r"a\.png has 16-bit colours .* value_range=\[0, 4095\] applies to grey"):
        read_image(path, [0, 4095])
    with pytest.raises(ValueError, match=r"a\.png has 16-bit colours .* or to a \.npy array \(H, W, 1\)"):
        read_image(path, [0, 4095], channels=1)


@TABLE.row("grey, palette, 1-bit, CMYK, transparent (LA, RGBA)")
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


@TABLE.row("TIFF with three bands of floating-point numbers, or of 16 bits stored one after the other")
def test_tiffs_that_pillow_cannot_read(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    deep, path = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16), tmp_path / "a.tif"
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
    with pytest.raises(
        UnreadableImage, match=r"a\.tif stores its 16-bit bands one after the other: .*segmentation\[bands\]"
    ):
        read_image(path)  # Pillow reads it as noise


@TABLE.row("any other mode, such as LAB")
def test_other_modes(tmp_path):
    if not PIL.__version__.startswith("12."):  # which cannot read the YCbCr TIFF that it writes
        Image.fromarray(PHOTO).convert("RGB").convert("YCbCr").save(tmp_path / "ycc.tif")
        assert read_image(tmp_path / "ycc.tif").shape == (3, 20, 30)
    Image.frombytes("LAB", (30, 20), PHOTO.tobytes()).save(tmp_path / "lab.tif")
    for channels in (1, 3):
        with pytest.raises(ValueError, match=r"lab\.tif has mode LAB, which is not supported: convert it"):
            read_image(tmp_path / "lab.tif", channels=channels)
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    for kind in ("cielab", "ycbcr"):  # whose numbers are not those of red, green and blue
        tifffile.imwrite(tmp_path / "deep.tif", PHOTO.astype(np.uint16) * 257, photometric=kind)
        with pytest.raises(UnreadableImage, match=r"deep\.tif is .* of an unsupported kind, .* or 16-bit LAB"):
            read_image(tmp_path / "deep.tif")


@TABLE.row("a photo with an EXIF orientation or malformed tags")
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


@TABLE.row("a PNG with more than 1 MB of text or colour profile")
def test_large_metadata(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("history", "x" * 2**21, zip=True)
    before = PngImagePlugin.MAX_TEXT_CHUNK
    for mode in ("RGB", "RGBA"):  # a fast decoder may read the former, Pillow reads the latter
        Image.fromarray(PHOTO).convert(mode).save(tmp_path / "a.png", pnginfo=text, icc_profile=bytes(2**21))
        assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), PHOTO)
    assert before == PngImagePlugin.MAX_TEXT_CHUNK


@TABLE.row("a suffix that does not match the content, such as a GIF named .jpg")
def test_the_content_decides(tmp_path):
    for name, kind in (("gif.jpg", "GIF"), ("jpeg.png", "JPEG"), ("png.tif", "PNG"), ("bmp.jpeg", "BMP")):
        buffer = io.BytesIO()
        Image.fromarray(PHOTO).save(buffer, kind)
        (tmp_path / name).write_bytes(buffer.getvalue())
        buffer.seek(0)
        assert np.array_equal(read_image(tmp_path / name).permute(1, 2, 0), Image.open(buffer).convert("RGB")), name


@TABLE.row("an animation, or a file with several pages")
def test_several_frames(tmp_path):
    for name in ("a.gif", "a.tif"):
        pages = [Image.fromarray(np.full_like(PHOTO, grey)) for grey in (7, 200)]
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        assert (grey(tmp_path / name) == 7).all()
        frames, read = frames_of(tmp_path / name), FrameReader()
        assert [int(read(tmp_path / name, frame)[0].max()) for frame in frames] == [7, 200]


@TABLE.row("a truncated file, or a file that is not an image")
def test_unreadable_files(tmp_path):
    path = save(tmp_path / "a.jpg", PHOTO)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableImage, match=r"a\.jpg cannot be read as an image and may be truncated"):
        read_image(path)
    path.write_text("<html>not found</html>")
    with pytest.raises(UnreadableImage, match=r"a\.jpg cannot be read as an image: its content is in none of .* JPEG"):
        read_image(path)
