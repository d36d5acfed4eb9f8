"""Images of any number of channels: what is read from each kind of file, and what is drawn."""

import numpy as np
import pytest
import torch
from PIL import Image

from ccnet.data.image_pairs import ImagePairs
from ccnet.data.inspection import inspect_dataset
from ccnet.data.reading.bands import drawn_channels
from ccnet.data.reading.errors import UnreadableImage
from ccnet.data.reading.frames import FrameReader, frames_of
from ccnet.data.reading.image_files import as_stored, describe, orientation, read_image
from ccnet.data.reading.label_files import LabelReader
from ccnet.data.transforms import mean_colour, train_transform


def values(channels, dtype=np.uint8, size=(5, 7)):
    high = 255 if np.dtype(dtype).kind != "u" else np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, high, (*size, channels)).astype(dtype)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("CMYK", 4)])
def test_pillow_images_keep_their_channels(tmp_path, mode, channels):
    pixels = values(channels)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(pixels.squeeze(), mode=None if mode in ("L", "RGB", "RGBA", "LA") else mode).save(path)
    assert np.array_equal(read_image(path, channels=channels).permute(1, 2, 0).numpy(), pixels)
    if channels > 3:
        with pytest.raises(
            ValueError, match=rf"a\.\w+ has 4 channels \(mode {mode}\), but backbone.in_channels=9|\(9, H, W\)"
        ):
            read_image(path, channels=9)


def test_colours_become_grey_for_one_channel_and_deep_grey_is_scaled(tmp_path):
    Image.fromarray(values(3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", channels=1).shape == (1, 5, 7)
    deep = values(1, np.uint16)[..., 0]
    Image.fromarray(deep).save(tmp_path / "b.png")
    found = read_image(tmp_path / "b.png", channels=1)
    assert np.array_equal(found[0].numpy(), np.round(deep / 65535 * 255).astype(np.uint8))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_arrays_have_their_channels_first_or_last(tmp_path, channels, first):
    pixels = values(channels)
    path = tmp_path / "a.npy"
    np.save(path, np.moveaxis(pixels, -1, 0) if first else pixels)
    assert np.array_equal(read_image(path, channels=channels).permute(1, 2, 0).numpy(), pixels)
    assert (orientation(path), frames_of(path), describe(path)) == (1, [0], "8-bit array")
    with pytest.raises(ValueError, match=r"a\.npy has the shape .*: expected \(H, W, 9\) or \(9, H, W\)"):
        read_image(path, channels=9)


def test_arrays_of_other_types_are_scaled(tmp_path):
    np.save(tmp_path / "a.npy", values(4, np.uint16))
    expected = np.round(values(4, np.uint16) / 65535 * 255)
    assert np.array_equal(read_image(tmp_path / "a.npy", channels=4).permute(1, 2, 0).numpy(), expected)
    np.save(tmp_path / "big.npy", values(4, np.uint16).astype(">u2"))
    assert np.array_equal(read_image(tmp_path / "big.npy", channels=4).permute(1, 2, 0).numpy(), expected)
    assert describe(tmp_path / "big.npy") == "16-bit array"
    np.save(tmp_path / "b.npy", values(4).astype(np.float32) / 255)
    with pytest.raises(ValueError, match=r"b\.npy has values of type float32 .*dataset\.value_range"):
        read_image(tmp_path / "b.npy", channels=4)
    assert np.array_equal(read_image(tmp_path / "b.npy", (0, 1), 4).permute(1, 2, 0).numpy(), values(4))
    np.save(tmp_path / "8.npy", values(4))
    assert np.array_equal(read_image(tmp_path / "8.npy", (0, 9), 4).permute(1, 2, 0).numpy(), values(4))  # as in a PNG
    np.save(tmp_path / "t.npy", np.full((2, 2, 4), "a"))
    with pytest.raises(ValueError, match=r"t\.npy has values of type <U1: expected real numbers"):
        read_image(tmp_path / "t.npy", (0, 1), 4)
    (tmp_path / "c.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:150])
    with pytest.raises(ValueError, match=r"c\.npy"):
        read_image(tmp_path / "c.npy", (0, 1), 4)
    np.save(tmp_path / "d.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"d\.npy cannot be read as an image"):
        read_image(tmp_path / "d.npy", channels=1)


@pytest.mark.parametrize("pages", [False, True, "one by one"])
def test_bands_of_a_tiff(tmp_path, pages):
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    pixels, path = values(6, np.uint16), tmp_path / "a.tif"
    if pages == "one by one":
        for band in np.moveaxis(pixels, -1, 0):
            tifffile.imwrite(path, band, append=True)
    elif pages:
        tifffile.imwrite(path, np.moveaxis(pixels, -1, 0), photometric="minisblack")
    else:
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    found = read_image(path, channels=6).permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.round(pixels / 65535 * 255).astype(np.uint8))
    assert pages or (orientation(path), frames_of(path)) == (1, [0])
    assert (orientation(path, 6), frames_of(path, 6)) == (1, [0])


def test_three_pages_are_channels_if_the_file_says_so(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    pixels, path = values(3), tmp_path / "a.tif"
    pages = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    for kind in ("imagej", "ome"):
        tifffile.imwrite(path, pages, metadata={"axes": "CYX"}, photometric="minisblack", **{kind: True})
        assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), pixels)
        assert (frames_of(path), describe(path)) == ([0], "8-bit array")
        with pytest.raises(ValueError, match=r"a\.tif has the shape \(3, 5, 7\): .* as backbone\.in_channels=1 says"):
            read_image(path, channels=1)
        with pytest.raises(ValueError, match=r"a\.tif has 3 pages, but a label image must have one"):
            LabelReader({0: 0})(path)
    tifffile.imwrite(path, pages, metadata={"axes": "ZYX"}, imagej=True)  # slices
    assert np.array_equal(read_image(path).numpy(), np.stack([pages[0]] * 3))


def test_images_are_described_as_they_are_read(tmp_path):
    """Pillow cannot open a TIFF of two bands, and reads only the first page of others."""
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    path, mask = tmp_path / "a.tif", tmp_path / "a.png"
    Image.fromarray(np.zeros((5, 7), dtype=np.uint8)).save(mask)

    def kinds(channels):
        dataset = ImagePairs([(path, mask)], classes=["a"], palette=[(0, 0, 0)], transform=None, channels=channels)
        return [*inspect_dataset(dataset).kinds]

    tifffile.imwrite(path, values(2), photometric="minisblack", planarconfig="contig")
    assert kinds(2) == ["8-bit array"]
    tifffile.imwrite(path, values(5), photometric="minisblack", planarconfig="contig", extratags=[(274, 3, 1, 2)])
    assert kinds(5) == ["8-bit array, turned upright as EXIF says"]
    pages = [Image.fromarray(band) for band in np.moveaxis(values(4), -1, 0)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert (kinds(4), kinds(3)) == (["8-bit array"], ["8-bit L, the first of 4 pages"])


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_reader_turns_a_tiff_upright(tmp_path, turn):
    """RGBA, which tifffile reads in four channels and Pillow in three."""
    pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    pixels = values(4)
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={0x0112: turn})
    found = {channels: FrameReader(channels=channels)(tmp_path / "a.tif") for channels in (3, 4)}
    assert [orientation for _, orientation in found.values()] == [turn, turn]
    assert torch.equal(found[4][0][:3], found[3][0])
    assert np.array_equal(as_stored(found[4][0].numpy(), turn), np.moveaxis(pixels, -1, 0))


class WithoutImagecodecs(dict):
    """The decompressors of tifffile if imagecodecs is not installed."""

    def __missing__(self, compression):
        raise KeyError(f"{compression!r} requires the 'imagecodecs' package")


def test_tiffs_that_tifffile_cannot_decompress_are_left_to_pillow(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    uncompressed = WithoutImagecodecs({1: tifffile.TIFF.DECOMPRESSORS[1]})
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", uncompressed)
    Image.fromarray(values(4)).save(tmp_path / "a.tif", compression="tiff_lzw")
    assert np.array_equal(read_image(tmp_path / "a.tif", channels=4).permute(1, 2, 0).numpy(), values(4))
    options = {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "b.tif", values(5), **options)
    with pytest.raises(ValueError, match=r"b\.tif is compressed .*: pip install imagecodecs") as told:
        read_image(tmp_path / "b.tif", channels=5)
    assert not isinstance(told.value, UnreadableImage)  # skip_broken must not skip them all


def test_an_image_of_as_many_rows_as_channels_is_grey(tmp_path):
    np.save(tmp_path / "a.npy", values(1, size=(3, 7))[..., 0])
    assert read_image(tmp_path / "a.npy").shape == (3, 3, 7)


def test_three_chosen_channels_are_drawn():
    image = torch.arange(5).view(5, 1, 1)
    assert drawn_channels(image, [3, 2, 1]).flatten().tolist() == [3, 2, 1]
    assert drawn_channels(image, None).flatten().tolist() == [0, 1, 2]
    assert drawn_channels(image[:1], None).flatten().tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"dataset.rgb=\[0, 1, 5\]: set it to three channels from 0 to 4"):
        ImagePairs([], classes=["a"], palette=[(0, 0, 0)], transform=None, channels=5, rgb=[0, 1, 5])


@pytest.mark.parametrize("channels", [1, 4])
def test_transforms_take_any_number_of_channels(tmp_path, channels):
    Image.fromarray(values(channels).squeeze()).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((5, 7), dtype=np.uint8)).save(tmp_path / "b.png")
    transform = train_transform(crop_size=(9, 9), scale=(0.5, 2), color_jitter=[0.3, 0.3, 0.3, 0.05])
    pair = [(tmp_path / "a.png", tmp_path / "b.png")]
    image, _ = ImagePairs(pair, classes=["a"], palette=[(0, 0, 0)], transform=transform, channels=channels)[0]
    assert image.shape == (channels, 9, 9) and image.dtype == torch.uint8
    assert mean_colour(1) == [114] and mean_colour(4) == [124, 116, 104, 124]


def test_the_statistics_of_the_channels_are_reported(tmp_path):
    pairs = []
    for index in range(2):
        pairs.append((tmp_path / f"{index}.npy", tmp_path / f"{index}.png"))
        np.save(pairs[-1][0], values(4) // (index + 1))
        Image.fromarray(np.zeros((5, 7), dtype=np.uint8)).save(pairs[-1][1])
    dataset = ImagePairs(pairs, classes=["a"], palette=[(0, 0, 0)], transform=None, channels=4)
    mean, std = inspect_dataset(dataset).statistics()
    pixels = np.concatenate([values(4), values(4) // 2]).reshape(-1, 4) / 255
    assert np.allclose(mean, pixels.mean(0), atol=1e-4) and np.allclose(std, pixels.std(0), atol=1e-4)
