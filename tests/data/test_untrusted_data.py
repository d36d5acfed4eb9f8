"""Untrusted images, lists and annotations: size limits, and no access outside the data set's folder."""

import numpy as np
import pytest
import torch
from conftest import write_pair
from omegaconf import OmegaConf
from PIL import Image
from untrusted_files import bomb, small_config

from ccnet.data.reading import fast_decoders
from ccnet.data.reading.image_files import UnreadableImage, read_image
from ccnet.data.reading.label_files import LabelReader
from ccnet.data.reading.size_limit import ImageTooLarge
from ccnet.data.sets.camvid import CamVid
from ccnet.data.sets.coco import Coco
from ccnet.data.sets.lip import LIP
from ccnet.data.sets.voc import VOC
from ccnet.data.training_samples import Seeded
from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint
from ccnet.models.factory import build


@pytest.fixture(params=["pyspng", "Pillow"])
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(fast_decoders, "_decoders", dict)
    else:
        pytest.importorskip("pyspng")


def test_an_error_for_an_image_over_the_limit_says_how_to_raise_it(tmp_path, decoder, recwarn):
    path = bomb(tmp_path / "bomb.png")
    told = (
        f"{path} has 100000x100000 pixels, 10000000000 in all, more than the limit of 268435456: if that is intended, "
        "raise the limit with the environment variable CCNET_MAX_IMAGE_PIXELS=10000000000"
    )
    with pytest.raises(ImageTooLarge) as refused:
        read_image(path)
    assert str(refused.value) == told
    with pytest.raises(ImageTooLarge, match="more than the limit"):
        LabelReader({0: 0})(bomb(tmp_path / "label.png", colour=0))
    assert not recwarn.list


def test_an_environment_variable_sets_the_limit(tmp_path, decoder, monkeypatch, recwarn):
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv("CCNET_MAX_IMAGE_PIXELS", "600")
    assert read_image(tmp_path / "a.png").shape == (3, 20, 30)
    monkeypatch.setenv("CCNET_MAX_IMAGE_PIXELS", "599")
    with pytest.raises(ImageTooLarge, match="has 30x20 pixels, 600 in all, more than the limit of 599"):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv("CCNET_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(ValueError, match="CCNET_MAX_IMAGE_PIXELS=many is not a whole number"):
        read_image(tmp_path / "a.png")
    assert before == Image.MAX_IMAGE_PIXELS  # a program that imports this project keeps Pillow's own limit
    assert not recwarn.list


def test_aerial_images_are_read_without_a_warning(tmp_path, recwarn):
    """At 10000 x 10000 pixels, Pillow by itself would warn of a decompression bomb."""
    Image.new("1", (10_000, 10_000)).save(tmp_path / "aerial.png")
    assert LabelReader({0: 0})(tmp_path / "aerial.png").shape == (10_000, 10_000)
    assert not recwarn.list


def test_skip_broken_does_not_skip_images_over_the_limit(tmp_path):
    """The file is not broken: the user has to decide whether to remove it or raise the limit."""

    class One(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return read_image(tmp_path / "bomb.png")

    bomb(tmp_path / "bomb.png")
    with pytest.raises(ImageTooLarge):
        Seeded(One(), 0, skip_broken=2)[0, 0]


def test_only_the_format_of_the_suffix_is_decoded(tmp_path):
    """Pillow by itself would start Ghostscript for an EPS file with any suffix."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableImage, match=r"a\.png cannot be read as an image"):
        read_image(tmp_path / "a.png")


def test_predict_reports_an_image_over_the_limit_in_a_single_message(run_entry, tmp_path):
    config = small_config() | {"recipe": {"train_transform": {"crop_size": [64, 64]}}}
    weights = build(OmegaConf.create(config["model"])).state_dict()
    checkpoints.save(Checkpoint(weights, config, list("abcd"), [[0, 0, 0]] * 4, 1, {}), tmp_path / "last.pt")
    given = f"checkpoint={tmp_path / 'last.pt'}"
    done = run_entry("predict.py", given, f"input={bomb(tmp_path / 'in.png')}", "device=cpu", ok=False)
    assert "in.png has 100000x100000 pixels" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_list_cannot_refer_to_files_outside_its_data_set(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "secret"
    write_pair(outside / "a.png", outside / "b.png", classes=3)
    for names in (f"{outside}/a.png ../b.png", "train/a.png ../secret", "/ /", "../a.png ../b.png"):
        root.mkdir(exist_ok=True)
        (root / "train.txt").write_text(f"\n{names}\n")
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            CamVid(root, split="train", transform=None)
        assert f"{root}/train.txt" in str(refused.value)
    assert f"train.txt, line 2: '../a.png' points outside {root}: use relative paths to files in that folder" in str(
        refused.value
    )

    for folder in ("train_images", "val_images"):
        (root / "TrainVal_images" / folder).mkdir(parents=True)
    (root / "TrainVal_parsing_annotations" / "train_segmentations").mkdir(parents=True)
    for name in ("../../../secret/a", f"{outside}/a"):
        (root / "TrainVal_images" / "train_id.txt").write_text(f"{name}\n")
        with pytest.raises(ValueError, match=r"train_id\.txt, line 1: '.*a\.jpg' points outside"):
            LIP(root, split="train", transform=None)

    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / "VOC2012" / folder).mkdir(parents=True)
    (root / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt").write_text("../../../secret/a\n")
    with pytest.raises(FileNotFoundError, match=r"a\.jpg"):  # it ignores the folders in a path
        VOC(root, split="train", transform=None)


def test_symbolic_links_inside_a_data_set_are_followed(camvid_root, tmp_path):
    (camvid_root / "train").rename(tmp_path / "elsewhere")
    (camvid_root / "train").symlink_to(tmp_path / "elsewhere")
    dataset = CamVid(camvid_root, split="train", transform=None)
    assert dataset.read(0)[0].shape == (3, 48, 64)


def test_annotations_cannot_refer_to_files_outside_or_contain_oversized_masks(tmp_path):
    import json

    write_pair(tmp_path / "secret.png", tmp_path / "x.png", classes=3)
    write_pair(tmp_path / "root" / "train" / "a.png", tmp_path / "x.png", classes=3)
    file = tmp_path / "root" / "annotations" / "instances_train.json"
    file.parent.mkdir()

    def dataset(name="a.png", segmentation=None):
        box = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
        content = {
            "images": [{"id": 1, "file_name": name, "height": 48, "width": 64}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": [box | {"segmentation": segmentation or [[0, 0, 5, 0, 5, 5]]}],
        }
        file.write_text(json.dumps(content))
        return Coco(tmp_path / "root", split="train", transform=lambda image, target: (image, target))

    assert dataset()[0][1]["masks"].shape == (1, 48, 64)
    for name in ("../../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(FileNotFoundError, match="which is not in"):
            dataset(name)
    for segmentation in (
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": [48, 64], "counts": [1, 10**12]},
        {"size": [48, 64], "counts": "~~~~~~"},
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[0, 0, 5, 0, 5, "5"]],
        [5],
    ):
        with pytest.raises(ValueError, match=r"instances_train\.json: annotation 7 has"):
            dataset(segmentation=segmentation)[0]
