"""Mutated images, labels, annotations and lists yield samples or a clean error; see tests/fuzzing.py."""

import io
import json

import numpy as np
import pytest
import torch
from coco_data import write_coco
from conftest import write_pair
from fuzzing import clean, damage, examples, mutated, place
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ccnet.data.reading.image_files import read_image
from ccnet.data.reading.label_files import LabelReader
from ccnet.data.sets.camvid import CamVid
from ccnet.data.sets.coco import Coco, instances_transform
from ccnet.data.sets.lip import LIP
from ccnet.data.sets.voc import VOC
from ccnet.engine.evaluation.average_precision import _encoded, average_precision

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def _images():
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    grey = Image.fromarray(generator.integers(0, 3, (24, 32), dtype=np.uint8))
    palette = grey.convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {}
    deep = Image.fromarray(generator.integers(0, 3, (24, 32), dtype=np.uint16))
    for name, picture, options in (
        ("rgb.png", colour, {}),
        ("grey.png", grey, {}),
        ("palette.png", palette, {}),
        ("exif.png", colour, {"exif": exif}),
        ("deep.png", deep, {}),
        ("bit.png", grey.convert("1"), {}),
        ("a.jpg", colour, {"exif": exif}),
        ("progressive.jpg", colour, {"progressive": True}),
        ("cmyk.jpg", colour.convert("CMYK"), {}),
        ("a.bmp", colour, {}),
        ("lzw.tif", colour, {"compression": "tiff_lzw"}),
        ("deflate.tif", colour, {"compression": "tiff_adobe_deflate"}),
        ("jpeg.tif", colour, {"compression": "jpeg"}),
        ("grey.tif", grey, {}),
        ("a.webp", colour, {}),
    ):
        file = io.BytesIO()
        picture.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.split(".")[1].upper()), **options)
        made[name] = file.getvalue()
    return made


IMAGES = _images()


@examples(160)
@given(data=st.data(), name=st.sampled_from(sorted(IMAGES)))
def test_fuzzed_bytes_of_images_and_labels(scratch, data, name):
    path = place(scratch, name, data.draw(damage(IMAGES[name])))
    picture = clean(read_image, path)
    assert picture is None or (picture.dtype == torch.uint8 and picture.ndim == 3 and len(picture) == 3)
    for reader in (LabelReader({0: 0, 1: 1, 2: 2, 255: 255}), LabelReader({(0, 0, 0): 0, (255, 0, 0): 1})):
        labels = clean(reader, path)
        assert labels is None or (labels.dtype == torch.uint8 and labels.ndim == 2)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    return folder, write_coco(folder, images=2, split="val")


def _read_coco(folder):
    dataset = Coco(folder, split="val", transform=instances_transform())
    for index in range(len(dataset)):
        _, target = dataset[index]
        assert target["masks"].shape[0] == len(target["labels"])
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[1:10, 1:10] = 1
    found = [
        {
            "image_id": entry["id"],
            "category_id": dataset.category_ids[0],
            "bbox": [1.0, 1.0, 9.0, 9.0],
            "score": 0.5,
            "segmentation": _encoded(np.resize(mask, (entry["height"], entry["width"]))),
        }
        for entry in dataset.images
    ]
    return average_precision(dataset.ground_truth(), found)


@examples(40)
@given(data=st.data(), as_bytes=st.booleans())
def test_fuzzed_annotations(coco, data, as_bytes):
    folder, content = coco
    if as_bytes:
        written = data.draw(damage(json.dumps(content).encode()))
    else:
        written = json.dumps(data.draw(mutated(content))).encode()
    (folder / "annotations" / "instances_val.json").write_bytes(written)
    clean(_read_coco, folder)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Return the data sets that have lists: class, folder, list file and the valid content of the list."""
    root = tmp_path_factory.mktemp("listed")
    write_pair(root / "train" / "a.png", root / "trainannot" / "a.png", classes=11)
    images, labels = root / "TrainVal_images", root / "TrainVal_parsing_annotations"
    write_pair(images / "train_images" / "a.jpg", labels / "train_segmentations" / "a.png", classes=3)
    voc = root / "VOC2012"
    write_pair(voc / "JPEGImages" / "a.jpg", voc / "SegmentationClass" / "a.png", classes=3)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    return {
        "camvid": (CamVid, root, root / "train.txt", b"/SegNet/train/a.png /SegNet/trainannot/a.png\n"),
        "lip": (LIP, root, images / "train_id.txt", b"a.jpg\na\n"),
        "voc": (VOC, root, voc / "ImageSets" / "Segmentation" / "train.txt", b"a\n/JPEGImages/a.jpg /Seg/a.png\n"),
    }


@examples(40)
@given(data=st.data(), name=st.sampled_from(["camvid", "lip", "voc"]))
def test_fuzzed_lists(listed, data, name):
    kind, root, path, content = listed[name]
    lines = [b"", b"../a.png ../a.png\n", b"/etc/passwd /etc/passwd\n", b"\xff\n", b"\0 \0\n"]
    inserted = data.draw(st.sampled_from(lines))
    path.write_bytes(data.draw(damage(content + inserted)) if data.draw(st.booleans()) else inserted + content)

    def work():
        dataset = kind(root, split="train", transform=None)
        for pair in dataset.pairs:
            assert all(root in part.parents and ".." not in part.parts for part in pair)
        return dataset.read(0)

    clean(work)


def test_unchanged_files_are_read(coco, listed, scratch):
    """Otherwise every fuzzed example might be rejected for an unrelated reason."""
    folder, content = coco
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    assert clean(_read_coco, folder) is not None
    for kind, root, path, content in listed.values():
        path.write_bytes(content)
        assert clean(kind(root, split="train", transform=None).read, 0) is not None
    for name, content in IMAGES.items():
        assert clean(read_image, place(scratch, name, content)) is not None
