"""The frames of animations and the pages of multi-page files."""

import numpy as np
import pytest
from PIL import Image, ImageOps, ImageSequence, TiffImagePlugin

from ccnet.data.reading import frames as module
from ccnet.data.reading.frames import FrameReader, frames_of
from ccnet.data.reading.image_files import UnreadableImage


def pictures(number: int, size=(20, 30)) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)) for _ in range(number)]


def save(path, images, **options):
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


def pixels(read, path, frame):
    return read(path, frame)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif", "a.webp", "gif_named.jpg"])
def test_every_frame_is_read_in_any_order_as_pillow_composes_it(name, tmp_path, monkeypatch):
    first = pictures(1)[0]
    images = [first, *(first.copy() for _ in range(3))]
    for index, image in enumerate(images):
        image.paste((250, 20 * index, 0), (index, 5, index + 9, 12))  # the rest of a frame is that of the one before
    path = save(tmp_path / name, images, **({"format": "GIF"} if name.endswith("jpg") else {}))
    assert frames_of(path) == [0, 1, 2, 3]
    with Image.open(path) as file:
        want = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]
    opened = []
    monkeypatch.setattr(
        module.Image, "open", lambda *args, own=Image.open, **named: opened.append(1) or own(*args, **named)
    )
    read = FrameReader()
    for index in (0, 1, 3, 3):
        assert np.array_equal(pixels(read, path, index), want[index])
    assert len(opened) == 1  # once per frame would take quadratic time
    for index in (1, 0, 2):
        assert np.array_equal(pixels(read, path, index), want[index])
    read.close()


def test_pages_differ_in_size_mode_and_orientation(tmp_path):
    deep = Image.fromarray(np.full((8, 9), 4000, dtype=np.uint16))
    turned = pictures(1)[0]
    writer = TiffImagePlugin.AppendingTiffWriter(tmp_path / "a.tif", True)
    for image, orientation in ((pictures(1, (5, 7))[0], 1), (turned, 6), (deep, 1)):
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[0x0112] = orientation
        image.save(writer, format="TIFF", tiffinfo=info)
        writer.newFrame()
    writer.close()
    read = FrameReader(value_range=(0, 4000))
    results = [read(tmp_path / "a.tif", frame) for frame in frames_of(tmp_path / "a.tif")]
    assert [(tuple(image.shape), turn) for image, turn in results] == [
        ((3, 5, 7), 1),
        ((3, 30, 20), 6),
        ((3, 8, 9), 1),
    ]
    turned.info["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    assert np.array_equal(results[1][0].permute(1, 2, 0).numpy(), np.array(ImageOps.exif_transpose(turned)))
    assert (results[2][0] == 255).all()


def test_smaller_copies_of_a_page_are_omitted(tmp_path):
    """As in the pyramids of slide scanners and satellites."""
    large, small = pictures(1)[0], pictures(1, (10, 15))[0]
    small.encoderinfo = {"tiffinfo": {254: 1}}
    assert frames_of(save(tmp_path / "a.tif", [large, small])) == [0]


def test_a_damaged_frame_is_an_error_and_those_before_it_are_read(tmp_path):
    path = save(tmp_path / "a.gif", pictures(3))
    path.write_bytes(path.read_bytes()[:-900])
    frames, read = frames_of(path), FrameReader()
    assert frames == [0, 1, 2]
    assert pixels(read, path, 0).shape == (20, 30, 3)
    with pytest.raises(UnreadableImage, match=r"a\.gif, frame 3 cannot be read as an image"):
        pixels(read, path, 2)


def test_files_with_one_image_and_files_that_are_no_image_count_as_one_frame(tmp_path):
    image = pictures(1)[0]
    for name in ("a.png", "a.jpg", "a.bmp", "a.gif"):
        image.save(tmp_path / name)
        assert frames_of(tmp_path / name) == [0]
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    assert frames_of(tmp_path / "broken.gif") == [0]
    assert frames_of(tmp_path / "missing.gif") == [0]


def test_no_more_images_are_kept_than_a_clip_needs(tmp_path):
    path = save(tmp_path / "a.gif", pictures(4))
    read = FrameReader(keep=2)
    results = [read(path, index) for index in range(4)]
    assert read(path, 3)[0] is results[3][0] and read(path, 2)[0] is results[2][0]
    assert read(path, 1)[0] is not results[1][0]
    single = FrameReader()
    assert single(path, 0)[0] is not single(path, 0)[0]
