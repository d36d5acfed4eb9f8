"""Images of every format are decoded upright; errors name broken ones."""

import numpy as np
import pytest
import torch
from made_roots import read_folder
from PIL import Image, ImageOps, PngImagePlugin

from ccnet.data.reading import fast_decoders, grey_levels
from ccnet.data.reading.frames import FrameReader
from ccnet.data.reading.image_files import UnreadableImage, read_image
from ccnet.data.reading.label_files import LabelReader


def test_errors_name_a_truncated_image(folder_data):
    images, masks = folder_data
    path = images / "2.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"2\.jpg cannot be read as an image and may be truncated"):
        read_folder(images, masks)[2]


def test_images_and_masks_follow_their_exif_orientation(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    for name in ("photo.png", "photo.tif"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
        assert torch.equal(read_image(tmp_path / name), torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1))
    for name in ("mask.png", "mask.tif"):
        Image.fromarray(pixels[..., 0] % 5).save(tmp_path / name, exif=exif)
        labels = LabelReader({index: index for index in range(5)})(tmp_path / name)
        assert np.array_equal(labels, np.rot90(pixels[..., 0] % 5, -1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16", "P"])
def test_uncompressed_tiffs_are_turned(tmp_path, mode):
    """Pillow maps these modes into memory, with rows of the length that they have only when turned."""
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8))
    image = Image.fromarray(np.array(grey, dtype=np.uint16)) if mode == "I;16" else grey.convert(mode)
    image.save(tmp_path / "a.tif")
    image.save(tmp_path / "b.tif", tiffinfo={0x0112: 6})
    assert torch.equal(read_image(tmp_path / "b.tif"), read_image(tmp_path / "a.tif").rot90(-1, (1, 2)))
    assert torch.equal(FrameReader()(tmp_path / "b.tif", 0)[0], read_image(tmp_path / "b.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_every_orientation_is_undone_as_pillow_does(tmp_path, orientation, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    upright = np.array(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(read_image(path).permute(1, 2, 0), upright)


def test_bands_of_rows_do_not_change_the_pixels(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (33, 47, 3), dtype=np.uint8)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    for image in (Image.fromarray(pixels).quantize(99), Image.fromarray(pixels[..., 0]), deep):
        image.save(tmp_path / "a.png")
        whole = read_image(tmp_path / "a.png")
        monkeypatch.setattr(grey_levels, "_BAND", 100)
        assert torch.equal(read_image(tmp_path / "a.png"), whole)
        monkeypatch.undo()


@pytest.mark.parametrize("decoder", ["isal", "pyspng", "Pillow"])
def test_all_decoders_read_every_kind_of_png_identically(tmp_path, monkeypatch, decoder):
    if decoder == "Pillow":
        monkeypatch.setattr(fast_decoders, "_decoders", dict)
    else:
        pytest.importorskip("pyspng")
    if decoder == "isal":
        pytest.importorskip("isal")
        monkeypatch.setattr(fast_decoders, "_BLOCK", 500)  # several blocks also in a small image
    else:
        monkeypatch.setattr(fast_decoders, "_isal", lambda: None)
    pixels = np.random.default_rng(0).integers(0, 255, (33, 47, 3), dtype=np.uint8)
    read = LabelReader({index: index for index in range(254)} | {255: 255, 254: 0})
    for name, image in {
        "rgb": Image.fromarray(pixels),
        "grey": Image.fromarray(pixels[..., 0]),
        "alpha": Image.fromarray(np.dstack([pixels, pixels[..., :1]])),
        "palette": Image.fromarray(pixels).quantize(9),
        "bits": Image.fromarray(pixels[..., 0] > 99),
        "deep": Image.fromarray(pixels[..., 0].astype(np.uint16)),
    }.items():
        path = tmp_path / f"{name}.png"
        image.save(path)
        content = path.read_bytes()
        if decoder == "isal" and name in ("rgb", "grey"):
            assert len(fast_decoders._uncompressed(content, 3 if name == "rgb" else 1)) > 33 * 47
        if name != "deep":
            assert np.array_equal(read_image(path).permute(1, 2, 0), np.array(Image.open(path).convert("RGB"))), name
        if name in ("grey", "palette", "bits", "deep"):
            want = np.array(Image.open(path)).astype(int)
            assert np.array_equal(read(path), np.where(want == 254, 0, want)), name
    (tmp_path / "rgb.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"rgb\.png cannot be read as an image and may be truncated"):
        read_image(tmp_path / "rgb.png")
    # A JPEG with a .png suffix.
    Image.fromarray(pixels).save(tmp_path / "jpeg.png", format="JPEG")
    assert read_image(tmp_path / "jpeg.png").shape == (3, 33, 47)


def test_a_damaged_png_is_read_alike_by_all_decoders(tmp_path, monkeypatch):
    """Every byte of a small file in turn; pyspng alone would read other pixels."""
    pytest.importorskip("isal")
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()

    def result():
        try:
            return read_image(path).tolist()
        except UnreadableImage:
            return None

    for place in range(33, len(content)):  # after the header
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :])
        found = result()
        with monkeypatch.context() as patch:
            patch.setattr(fast_decoders, "_isal", lambda: None)
            assert found == result(), place
            patch.setattr(fast_decoders, "_decoders", dict)
            assert found == result(), place


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16"])
def test_a_png_with_damaged_pixels_is_an_error_and_one_with_damaged_metadata_is_not(tmp_path, mode):
    """Pillow would decode the damaged pixels without a message, which turns a mask into another one."""
    path = tmp_path / "a.png"
    values = np.random.default_rng(0).integers(0, 3, (40, 60), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)
    content = path.read_bytes()
    read = LabelReader(dict.fromkeys(range(256), 0)) if mode != "RGB" else read_image
    place = content.index(b"IDAT") + 60
    path.write_bytes(content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :])
    with pytest.raises(
        UnreadableImage, match=r"a\.png is damaged, as its checksum is wrong: replace it with an intact"
    ):
        read(path)
    end = len(content) - 12  # a comment with a wrong checksum before the end
    path.write_bytes(content[:end] + b"\0\0\0\3tEXta\0b" + b"\0\0\0\0" + content[end:])
    damaged = read(path)
    path.write_bytes(content)
    assert np.array_equal(damaged, read(path))


@pytest.mark.parametrize("key", ["exif", "Raw profile type exif", "xmp"])
def test_every_place_of_an_orientation_is_found(tmp_path, key):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    if key == "Raw profile type exif":  # as ImageMagick writes it
        text.add_text(key, f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}", zip=True)
    elif key == "xmp":
        text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=text, exif=exif if key == "exif" else b"")
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), np.rot90(pixels, -1))


@pytest.mark.parametrize("quality", [60, 95])
def test_simplejpeg_and_pillow_decode_identically(tmp_path, monkeypatch, quality):
    pytest.importorskip("simplejpeg")
    ramp = (np.mgrid[:61, :83].sum(axis=0) % 255).astype(np.uint8)
    image = Image.fromarray(np.dstack([ramp, 255 - ramp, ramp.T.reshape(ramp.shape)]))
    paths = []
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            paths.append(tmp_path / f"{subsampling}{progressive}.jpg")
            image.save(paths[-1], quality=quality, subsampling=subsampling, progressive=progressive)
    content = fast_decoders.read(paths[0])
    assert fast_decoders.decode(content, fast_decoders.header_of(content)) is not None
    fast = [read_image(path) for path in paths]
    monkeypatch.setattr(fast_decoders, "_decoders", dict)
    assert all(torch.equal(pixels, read_image(path)) for pixels, path in zip(fast, paths, strict=True))
