"""Each data set in its real layout: check, two training iterations, evaluation and prediction, and users' mistakes."""

import json
import runpy
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, write_pair
from PIL import Image

from ccnet.data.sets.ade20k import ADE20K
from ccnet.data.sets.camvid import CLASSES, PALETTE, CamVid, CamVidFull, _in_split, frame_of
from ccnet.data.sets.camvid_video import CamVidVideo
from ccnet.data.sets.cityscapes import Cityscapes
from ccnet.data.sets.class_table import read_classes
from ccnet.data.sets.lip import FLIP_PAIRS, LIP
from ccnet.data.sets.voc import VOC
from ccnet.data.transforms import eval_transform

CAMVID = SHARED / "data" / "camvid"
METADATA = SHARED / "data" / "metadata"

# A network and a recipe of seconds.
SMALL = [
    "backbone=resnet10t",
    "backbone.pretrained=false",
    "model.head.channels=16",
    "model.aux_head.channels=16",
    "recipe.max_iters=2",
    "recipe.val_every=2",
    "recipe.batch_size=2",
    "recipe.train_transform.crop_size=[33,41]",
    "log_every=1",
    "num_workers=0",
    "logger=none",
    "device=cpu",
]


def write_cityscapes(root: Path) -> Path:
    """Two cities to train on, one each to validate and to test."""
    for split, city, frames in (
        ("train", "aachen", 2),
        ("train", "bochum", 1),
        ("val", "lindau", 3),
        ("test", "bonn", 3),
    ):
        for frame in range(frames):
            stem = f"{city}_{frame:06d}_000019"
            label = root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
            write_pair(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", label, classes=34, seed=frame)
    return root


def write_lip(root: Path) -> Path:
    """As the archives unpack."""
    for split, folder, count in (
        ("train", "TrainVal_images", 3),
        ("val", "TrainVal_images", 2),
        ("test", "Testing_images", 1),
    ):
        names = [f"{count}{index}_{100 + index}" for index in range(count)]
        images = root / folder / ("testing_images" if split == "test" else f"{split}_images")
        for index, name in enumerate(names):
            label = root / "TrainVal_parsing_annotations" / f"{split}_segmentations" / f"{name}.png"
            write_pair(images / f"{name}.jpg", label, classes=20, size=(60 + index, 40), seed=index)
        (root / folder / f"{split}_id.txt").write_text("\n".join(names) + "\n")
    return root


def write_voc(root: Path) -> Path:
    """VOCdevkit with SBD's labels; the outline of objects is 255."""
    base = root / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, folder, count in (("train_aug", "SegmentationClassAug", 3), ("val", "SegmentationClass", 2)):
        names = [f"2007_{index:06d}" for index in range(count)]
        for index, name in enumerate(names):
            path = base / folder / f"{name}.png"
            labels = write_pair(base / "JPEGImages" / f"{name}.jpg", path, classes=21, seed=index)
            labels[0] = 255
            Image.fromarray(labels).save(path)
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


FULL_FRAMES = {
    "train": ["0001TP_006690", "0001TP_006720", "0006R0_f00930", "0016E5_07920", "0016E5_08190"],
    "val": ["0016E5_07959", "0016E5_07961", "0016E5_07963"],
    "test": ["0001TP_008550", "Seq05VD_f00000"],
}


def write_camvid_full(root: Path) -> Path:
    """Frames of every split in one folder, labels in the colours of CamVid's own classes."""
    colours = np.array([(128, 128, 128), (192, 0, 128), (0, 0, 64), (128, 0, 192), (0, 0, 0), (192, 0, 192)], np.uint8)
    for index, stem in enumerate(stem for stems in FULL_FRAMES.values() for stem in stems):
        label = root / "LabeledApproved_full" / f"{stem}_L.png"
        labels = write_pair(root / "701_StillsRaw_full" / f"{stem}.png", label, classes=6, seed=index)
        Image.fromarray(colours[labels]).save(label)
    return root


def write_ade20k(root: Path) -> Path:
    base = root / "ADEChallengeData2016"
    for split, prefix in (("training", "train"), ("validation", "val")):
        for index in range(2):
            stem = f"ADE_{prefix}_{index + 1:08d}"
            label = base / "annotations" / split / f"{stem}.png"
            write_pair(base / "images" / split / f"{stem}.jpg", label, classes=12, seed=index)
    return root


def write_camvid(root: Path) -> Path:
    for split, numbers in (("train", (0, 30, 60, 300, 330)), ("val", (1, 3, 5))):
        lines = []
        for number in numbers:
            name = f"0001TP_{number:06d}"
            image, label = f"{split}/{name}.png", f"{split}annot/{name}.png"
            write_pair(root / image, root / label, classes=12, seed=number)
            lines.append(f"{image} {label}")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


LAYOUTS = {
    "cityscapes": (write_cityscapes, ()),
    "lip": (write_lip, ()),
    "voc": (write_voc, ()),
    "camvid": (write_camvid, ()),
    "camvid_full": (write_camvid_full, ()),
    "camvid_video": (write_camvid, ("dataset.full=false", "dataset.frames=3", "loss=ce_ohem")),
    "ade20k": (write_ade20k, ("recipe.train_transform.short_sides=[30,50]",)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_check_train_evaluate_and_predict(name, tmp_path, run_entry):
    write, options = LAYOUTS[name]
    root = write(tmp_path / "data")
    chosen = [f"dataset={name}", f"dataset.root={root}", *options]
    checked = run_entry(
        "check_data.py", *chosen, "recipe.train_transform.crop_size=[33,41]", "num_workers=0", "samples=1",
        "splits=[train]",
    )  # fmt: skip
    assert "0 of them wrong" in checked.stdout
    assert np.array(Image.open(tmp_path / "outputs" / "check" / name / "train_samples.png")).std() > 10

    run_entry("train.py", *chosen, *SMALL, f"hydra.run.dir={tmp_path / 'run'}")
    best = f"checkpoint={tmp_path / 'run' / 'best'}"
    run_entry(
        "evaluate.py", best, "device=cpu", "num_workers=0", f"output={tmp_path / 'scores'}", "save_predictions=true"
    )
    protocol = "letterbox" if name == "lip" else "whole"
    stem = f"best_val_{protocol}"
    scores = json.loads((tmp_path / "scores" / f"{stem}.json").read_text())
    assert 0 <= scores["miou"] <= 1
    assert np.array(Image.open(tmp_path / "scores" / f"{stem}_confusion.png")).std() > 10
    masks = sorted((tmp_path / "scores" / f"{stem}_predictions").glob("*.png"))
    assert len(masks) == scores["images"]

    # Prediction of the same pictures meets the evaluation's, to the pixel; of a video, with the frames before it.
    files = [path for path in root.rglob(f"{masks[-1].stem}.*") if Image.open(path).mode == "RGB"]
    assert len(files) == 1
    given = files[0].parent if name == "camvid_video" else files[0]
    run_entry("predict.py", best, f"input={given}", "device=cpu", f"output={tmp_path / 'out'}")
    predicted = np.array(Image.open(tmp_path / "out" / f"{masks[-1].stem}.png"))
    assert np.array_equal(predicted, np.array(Image.open(masks[-1])))


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no ../shared/data/camvid on this machine")
def test_check_of_real_camvid_meets_its_published_weights(tmp_path, run_entry):
    done = run_entry(
        "check_data.py", "dataset=camvid", f"dataset.root={CAMVID}", "splits=[val]", "num_workers=2", "samples=1"
    )  # fmt: skip
    assert "val: 101 samples, 0 of them wrong; 101 of 360x480 (HxW); 11 classes" in done.stdout
    table = (tmp_path / "outputs" / "check" / "camvid" / "val_classes.csv").read_text().splitlines()[1:12]
    published = json.loads((METADATA / "camvid" / "camvid.json").read_text())["frequency"]["val"]["median_freq_weight"]
    assert [float(line.split(",")[-1]) for line in table] == pytest.approx(published, abs=1e-4)


@pytest.mark.skipif(not METADATA.is_dir(), reason="no ../shared/data/metadata on this machine")
def test_class_tables_are_the_published_ones():
    labels = json.loads((METADATA / "cityscapes" / "cityscapes.json").read_text())["labels"]
    assert [tuple(e.values()) for e in read_classes("cityscapes")] == [
        (e["id"], e["trainId"], e["name"], e["color"]) for e in labels
    ]
    lip = json.loads((METADATA / "lip" / "lip.json").read_text())
    assert [(e["name"], e["colour"]) for e in read_classes("lip")] == list(
        zip(lip["classes"], lip["palette"], strict=True)
    )
    assert [list(pair) for pair in FLIP_PAIRS] == lip["flip_pairs"]
    camvid = json.loads((METADATA / "camvid" / "camvid.json").read_text())
    assert list(CLASSES) == camvid["classes"][:11]
    assert [list(colour) for colour in PALETTE] == camvid["palette"][:11]


def test_cityscapes_maps_label_ids_or_reads_ready_train_ids(tmp_path):
    root = write_cityscapes(tmp_path)
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


def test_cityscapes_submission_has_label_ids_and_the_servers_names(tmp_path, run_entry):
    root = write_cityscapes(tmp_path / "data")
    run_entry("train.py", "dataset=cityscapes", f"dataset.root={root}", *SMALL, f"hydra.run.dir={tmp_path / 'run'}")
    evaluate = ("evaluate.py", f"checkpoint={tmp_path / 'run' / 'best'}", "split=test", "device=cpu", "num_workers=0")
    refused = run_entry(*evaluate, ok=False)
    assert "split=test has no labels to compare with: write its predictions with submission=true" in refused.stderr
    run_entry(*evaluate, "submission=true", "save_predictions=true", f"output={tmp_path / 'test'}")
    with zipfile.ZipFile(tmp_path / "test" / "best_test_whole_submission.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == [f"bonn_{frame:06d}_000019_leftImg8bit.png" for frame in range(3)]
        with archive.open(names[0]) as file:
            submitted = Image.open(file)
            submitted.load()
    picture = Image.open(root / "leftImg8bit" / "test" / "bonn" / names[0])
    assert (submitted.mode, submitted.size) == ("L", picture.size)
    ids = {e["train_id"]: e["id"] for e in read_classes("cityscapes") if 0 <= e["train_id"] < 19}
    mask = np.array(Image.open(tmp_path / "test" / "best_test_whole_predictions" / names[0]))
    assert np.array_equal(np.array(submitted), np.vectorize(ids.get)(mask))
    assert json.loads((tmp_path / "test" / "best_test_whole.json").read_text())["images"] == 3


def test_result_values_of_the_benchmarks(tmp_path):
    ade = ADE20K(write_ade20k(tmp_path), split="training", transform=None)
    assert ade.result_values == tuple(range(1, 151))
    lip = LIP(write_lip(tmp_path / "lip"), split="test", transform=None)
    assert lip.result_values == tuple(range(20))
    assert lip.name(0) == "10_100"


def test_voc_reads_names_and_paths_and_ignores_outlines(tmp_path):
    root = write_voc(tmp_path)
    dataset = VOC(root / "VOC2012", split="train_aug", transform=eval_transform())
    assert len(dataset) == 3
    assert (dataset[0][1][0] == 255).all()
    listed = root / "VOC2012" / "ImageSets" / "Segmentation"
    (listed / "train_aug.txt").unlink()
    (listed / "trainaug.txt").write_text("/JPEGImages/2007_000001.jpg /SegmentationClassAug/2007_000001.png\n")
    other = VOC(root, split="train_aug", transform=eval_transform())
    assert [other.name(index) for index in range(len(other))] == ["2007_000001"]


def test_camvid_full_gathers_32_colours_into_11_classes(tmp_path):
    root = write_camvid_full(tmp_path)
    for split, stems in FULL_FRAMES.items():
        dataset = CamVidFull(root, split=split, transform=eval_transform())
        assert [dataset.name(index) for index in range(len(dataset))] == stems
    # sky; archway is building; cone is pole; lane marking is road; void; motorcycle is bicyclist
    assert list(dict.fromkeys(dataset[0][1][0].tolist())) == [0, 1, 2, 3, 255, 10]
    label = dataset.pairs[0][1]
    wrong = np.array(Image.open(label))
    wrong[0, 0] = (1, 2, 3)
    Image.fromarray(wrong).save(label)
    with pytest.raises(ValueError, match=r"_L\.png holds the label value \(1, 2, 3\), outside the 32 values"):
        dataset[0]


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no ../shared/data/camvid on this machine")
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_full_layouts_split_is_segnets(split):
    names = [
        Path(line.split()[0]) for part in ("train", "val") for line in (CAMVID / f"{part}.txt").read_text().splitlines()
    ]
    assert [path for path in names if _in_split(path, split)] == [path for path in names if path.parts[0] == split]


def test_clips_stay_within_a_run_and_supervise_the_last_frame(tmp_path):
    dataset = CamVidVideo(write_camvid(tmp_path), split="train", frames=3, transform=eval_transform())
    names = [[dataset._stills.name(frame)[-3:] for frame in clip] for clip in dataset.clips]
    assert [" ".join(clip) for clip in names] == [
        "000 000 000", "000 000 030", "000 030 060", "300 300 300", "300 300 330",
    ]  # fmt: skip
    image, labels = dataset[2]
    stills = CamVid(tmp_path, split="train", transform=eval_transform())
    assert (image.shape, labels.shape) == ((3, 3, 48, 64), (3, 48, 64))
    assert all(torch.equal(image[:, t], stills[t][0]) for t in range(3))
    assert torch.equal(labels[2], stills[2][1])
    assert (labels[:2] == 255).all()
    assert dataset.name(2) == "0001TP_000060"


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no ../shared/data/camvid on this machine")
def test_real_clips_never_cross_sequences_or_gaps():
    for split, length, step, starts in (("train", 367, 31, 5), ("val", 101, 2, 1)):
        dataset = CamVidVideo(CAMVID, split=split, frames=5, transform=None)
        assert sorted(clip[-1] for clip in dataset.clips) == list(range(length))  # every frame is scored once
        frames = [[frame_of(dataset._stills.pairs[index][0]) for index in clip] for clip in dataset.clips]
        assert all(len({sequence for sequence, _ in clip}) == 1 for clip in frames)
        assert all(0 <= b - a <= step for clip in frames for (_, a), (_, b) in pairwise(clip))
        assert sum(clip[0] == clip[-1] for clip in frames) == starts  # train: three sequences and two gaps


ROOTS = {
    "cityscapes": (write_cityscapes, lambda root: Cityscapes(root, split="train", transform=None)),
    "lip": (write_lip, lambda root: LIP(root, split="train", transform=None)),
    "voc": (write_voc, lambda root: VOC(root, split="train_aug", transform=None)),
    "camvid_full": (write_camvid_full, lambda root: CamVidFull(root, split="train", transform=None)),
}


@pytest.mark.parametrize("name", ROOTS)
def test_a_missing_root_folder_or_label_is_named(name, tmp_path):
    write, read = ROOTS[name]
    with pytest.raises(FileNotFoundError, match=r"dataset\.root is not set"):
        read(None)
    with pytest.raises(FileNotFoundError, match=r"(?s)lacks .*The layout of .*Where to get it: "):
        read(tmp_path)
    dataset = read(write(tmp_path))
    label = dataset.pairs[1][1]
    label.unlink()
    with pytest.raises(FileNotFoundError, match=f"names 1 files that are missing: .*{label.name}"):
        read(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("cityscapes", 40), ("lip", 20), ("voc", 21), ("camvid_full", 5)])
def test_a_wrong_label_value_is_named_with_its_file(name, value, tmp_path):
    write, read = ROOTS[name]
    dataset = read(write(tmp_path))
    label = dataset.pairs[0][1]
    Image.fromarray(np.full_like(np.array(Image.open(label)), value)).save(label)
    with pytest.raises(ValueError, match=rf"{label.name} holds the label value \(?{value}"):
        dataset.read(0)


@pytest.mark.parametrize("dataset", [Cityscapes, LIP, VOC, CamVidFull])
def test_an_unknown_split_gets_the_choices(dataset, tmp_path):
    for part in ("701_StillsRaw_full", "LabeledApproved_full"):
        (tmp_path / part).mkdir()
    with pytest.raises(ValueError, match=r"split is 'valid': choose one of train"):
        dataset(tmp_path, split="valid", transform=None)


def test_check_names_everything_that_is_wrong_and_fails(tmp_path, run_entry):
    root = write_cityscapes(tmp_path / "data")
    pictures = sorted((root / "leftImg8bit" / "train").rglob("*.png"))
    pictures[0].write_bytes(pictures[0].read_bytes()[:-400])
    labels = sorted((root / "gtFine" / "train").rglob("*.png"))
    Image.new("L", (30, 20)).save(labels[1])
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(labels[2])
    done = run_entry("check_data.py", "dataset=cityscapes", f"dataset.root={root}", "num_workers=1", ok=False)
    assert "train: 3 samples, 3 of them wrong" in done.stdout
    assert "val: 3 samples, 0 of them wrong" in done.stdout
    assert "3 samples are wrong" in done.stderr
    assert f"{pictures[0]} cannot be read as an image" in done.stderr
    assert f"{labels[1]} has 30x20 pixels" in done.stderr
    assert f"{labels[2]} holds the label value 77" in done.stderr


def test_check_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", "dataset=lip", "dataset.root=/nowhere"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ccnet.check_data", run_name="__main__", alter_sys=True)
    assert ended.value.code == 1
    assert "error: dataset.root=/nowhere is not a folder: LIP was expected there" in capsys.readouterr().err
