"""Check, train, evaluate and predict on each data set in its real layout."""

import json
import runpy
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from conftest import SHARED, SHORT, write_pair
from made_roots import (
    write_ade20k,
    write_camvid,
    write_camvid_full,
    write_cityscapes,
    write_lip,
    write_voc,
)
from PIL import Image

from ccnet.data.sets.class_table import read_classes
from ccnet.data.sets.voc import VOC
from ccnet.engine import checkpoints
from ccnet.engine.evaluation import PredictionFiles

pytestmark = pytest.mark.slow


CAMVID = SHARED / "data" / "camvid"
METADATA = SHARED / "data" / "metadata"

# A network and a recipe that train in seconds.
SMALL = [
    *SHORT, "backbone=beacons", "model.head.channels=16", "model.aux_head.channels=16", "recipe.max_iters=2",
    "recipe.train_transform.crop_size=[33,41]",
]  # fmt: skip

LAYOUTS = {
    "cityscapes": (write_cityscapes, ()),
    "lip": (write_lip, ()),
    "voc": (write_voc, ()),
    "camvid_full": (write_camvid_full, ()),
    "camvid_video": (write_camvid, ("dataset.full=false", "dataset.frames=3", "loss=ce_ohem")),
    "ade20k": (write_ade20k, ("recipe.train_transform.short_sides=[30,50]",)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_check_train_evaluate_and_predict(name, tmp_path, run_entry):
    write, options = LAYOUTS[name]
    incomplete = ("ade20k", "camvid_full")  # these small data sets do not contain all of their classes
    root = write(tmp_path / "data")
    chosen = [f"dataset={name}", f"dataset.root={root}", *options]
    checked = run_entry(
        "check_data.py", *chosen, "recipe.train_transform.crop_size=[33,41]", "num_workers=0", "samples=1",
        "splits=[train]", ok=name not in incomplete,
    )  # fmt: skip
    assert "0 of them invalid" in checked.stdout
    assert ("classes that occur nowhere in train: " in checked.stderr) == (name in incomplete)
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
    masks = sorted((tmp_path / "scores" / f"{stem}_predictions").glob("*.png"))
    assert len(masks) == scores["images"]

    # predict.py and evaluate.py agree on every pixel; for clips, predict.py also needs the preceding frames.
    files = [path for path in root.rglob(f"{masks[-1].stem}.*") if Image.open(path).mode == "RGB"]
    assert len(files) == 1
    given = files[0].parent if name == "camvid_video" else files[0]
    run_entry("predict.py", best, f"input={given}", "device=cpu", f"output={tmp_path / 'out'}")
    predicted = np.array(Image.open(tmp_path / "out" / f"{masks[-1].stem}.png"))
    assert np.array_equal(predicted, np.array(Image.open(masks[-1])))


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no ../shared/data/camvid on this machine")
def test_check_of_real_camvid_reports_the_published_class_weights(tmp_path, run_entry):
    done = run_entry(
        "check_data.py", "dataset=camvid", f"dataset.root={CAMVID}", "splits=[val]", "num_workers=2", "samples=1"
    )  # fmt: skip
    assert "val: 101 samples, 0 of them invalid; 101 of 360x480 (HxW); 101 of 8-bit RGB; 11 classes" in done.stdout
    table = (tmp_path / "outputs" / "check" / "camvid" / "val_classes.csv").read_text().splitlines()[1:12]
    published = json.loads((METADATA / "camvid" / "camvid.json").read_text())["frequency"]["val"]["median_freq_weight"]
    assert [float(line.split(",")[-1]) for line in table] == pytest.approx(published, abs=1e-4)


def write_own(root, number):
    """Write 16-bit images and masks of 0 and 255 as a user has them; return the options that name their folders."""
    for index in range(number):
        write_pair(root / "images" / f"{index}.png", root / "masks" / f"{index}_mask.png", classes=2, seed=index)
        mask = np.array(Image.open(root / "masks" / f"{index}_mask.png"))
        mask[:, 8:] = 1  # an eighth is road
        Image.fromarray(mask * 255).save(root / "masks" / f"{index}_mask.png")
        Image.fromarray(mask.astype(np.uint16) * 4000).save(root / "images" / f"{index}.png")
    return "dataset=folder", f"dataset.images={root / 'images'}", f"dataset.masks={root / 'masks'}"


def test_own_images_are_trained_on_evaluated_and_predicted_alike(tmp_path, run_entry):
    own = write_own(tmp_path / "own", 10)
    options = ("dataset.mask_name=*_mask", "dataset.classes=[road,car]", *SMALL, f"hydra.run.dir={tmp_path / 'run'}")
    done = run_entry(
        "train.py", *own, *options, "dataset.values=[0,255]", "dataset.value_range=[0,4095]", "dataset.test_share=0.2",
        "dataset.class_weights=auto",
    )  # fmt: skip
    assert "warning" not in done.stdout
    best = checkpoints.load(tmp_path / "run" / "best.safetensors")
    assert best.classes == ["road", "car"]
    # Frequencies 1/8 and 7/8, median 1/2
    assert best.config["class_weights"] == best.config["loss"]["terms"]["main"]["class_weights"] == [4.0, 0.571429]

    evaluate = ("evaluate.py", f"checkpoint={tmp_path / 'run' / 'best'}", "device=cpu", "num_workers=0")
    run_entry(*evaluate, "split=test", f"output={tmp_path / 'test'}")
    assert json.loads((tmp_path / "test" / "best_test_whole.json").read_text())["images"] == 2
    other = write_own(tmp_path / "other", 3)
    run_entry(*evaluate, *other, "split=all", f"output={tmp_path / 'all'}", "save_predictions=true")
    scores = json.loads((tmp_path / "all" / "best_folder_all_whole.json").read_text())
    assert scores["images"] == 3
    assert not np.isnan(scores["class_iou"]).any()  # with the run's own values, both classes occur
    run_entry(
        "predict.py", evaluate[1], f"input={tmp_path / 'other' / 'images' / '1.png'}", "device=cpu",
        f"output={tmp_path / 'out'}",
    )  # fmt: skip
    predicted = np.array(Image.open(tmp_path / "all" / "best_folder_all_whole_predictions" / "1.png"))
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / "1.png")), predicted)

    done = run_entry("train.py", *own, *options, f"hydra.run.dir={tmp_path / 'wrong'}", "recipe.max_iters=1")
    assert "warning: train: the label images contain only 0 and 255, and 255 is ignored, so that car is" in done.stdout


def test_a_cityscapes_submission_has_label_ids_and_the_file_names_of_the_benchmark(tmp_path, run_entry):
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
    image = Image.open(root / "leftImg8bit" / "test" / "bonn" / names[0])
    assert (submitted.mode, submitted.size) == ("L", image.size)
    ids = {e["train_id"]: e["id"] for e in read_classes("cityscapes") if 0 <= e["train_id"] < 19}
    mask = np.array(Image.open(tmp_path / "test" / "best_test_whole_predictions" / names[0]))
    assert np.array_equal(np.array(submitted), np.vectorize(ids.get)(mask))
    assert json.loads((tmp_path / "test" / "best_test_whole.json").read_text())["images"] == 3


def test_a_voc_submission_is_a_tar_archive_of_palette_images_in_the_folder_of_the_server(tmp_path):
    dataset = VOC(write_voc(tmp_path / "data"), split="val", transform=None)
    files = PredictionFiles(tmp_path / "out_submission", dataset, submission=True)
    labels = torch.arange(21, dtype=torch.uint8).view(3, 7)
    for index in range(len(dataset)):
        files.write(index, labels)
    assert files.pack() == tmp_path / "out_submission.tar"
    with tarfile.open(tmp_path / "out_submission.tar") as archive:
        names = [f"results/VOC2012/Segmentation/comp6_test_cls/2007_{index:06d}.png" for index in range(2)]
        assert archive.getnames() == names
        image = Image.open(archive.extractfile(names[0]))
        image.load()
    assert image.mode == "P" and np.array_equal(np.array(image), labels)
    assert image.convert("RGB").getpixel((6, 2)) == dataset.palette[20]


def test_left_and_right_are_swapped_on_any_data_set_with_the_classes_of_the_network(tmp_path, run_entry):
    root = write_lip(tmp_path / "data")
    run_entry("train.py", "dataset=lip", f"dataset.root={root}", *SMALL, f"hydra.run.dir={tmp_path / 'run'}")
    evaluate = ("evaluate.py", f"checkpoint={tmp_path / 'run' / 'best'}", "protocol=ms_flip", "protocol.scales=[1.0]")
    here = ("device=cpu", "num_workers=0", "save_predictions=true", f"output={tmp_path}")
    run_entry(*evaluate, *here)
    names = ",".join(entry["name"] for entry in read_classes("lip"))
    images = root / "TrainVal_images" / "val_images"
    masks = root / "TrainVal_parsing_annotations" / "val_segmentations"
    folder = ("dataset=folder", f"dataset.images={images}", f"dataset.masks={masks}", f"dataset.classes=[{names}]")
    run_entry(*evaluate, *here, *folder, "split=all")
    own, other = (
        json.loads((tmp_path / f"best_{name}_ms_flip_scales-1.0.json").read_text()) for name in ("val", "folder_all")
    )
    pairs = [[14, 15], [16, 17], [18, 19]]
    assert own["settings"]["protocol.flip_pairs"] == other["settings"]["protocol.flip_pairs"] == pairs
    assert own["class_iou"] == other["class_iou"]
    refused = run_entry(*evaluate, *here, "dataset=voc", f"dataset.root={write_voc(tmp_path / 'voc')}", ok=False)
    assert "the checkpoint has 20 classes (Background, Hat, Hair, ...) but the data set has 21" in refused.stderr


def test_check_names_every_broken_file_and_fails(tmp_path, run_entry):
    root = write_cityscapes(tmp_path / "data")
    images = sorted((root / "leftImg8bit" / "train").rglob("*.png"))
    images[0].write_bytes(images[0].read_bytes()[:-400])
    labels = sorted((root / "gtFine" / "train").rglob("*.png"))
    Image.new("L", (30, 20)).save(labels[1])
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(labels[2])
    done = run_entry("check_data.py", "dataset=cityscapes", f"dataset.root={root}", "num_workers=1", ok=False)
    assert "train: 3 samples, 3 of them invalid" in done.stdout
    assert "val: 3 samples, 0 of them invalid" in done.stdout
    assert "this data set has problems (3)" in done.stderr
    assert f"{images[0]} cannot be read as an image" in done.stderr
    assert f"{labels[1]} has 30x20 pixels" in done.stderr
    assert "train: label images contain values that the data set does not define:" in done.stderr
    assert [line.split() for line in done.stderr.splitlines() if line.split()[:1] == ["77"]] == [
        ["77", "100.00", "1", labels[2].name.replace("gtFine_labelIds.png", "leftImg8bit")]
    ]


def test_check_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", "dataset=lip", "dataset.root=/nowhere"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ccnet.check_data", run_name="__main__", alter_sys=True)
    assert ended.value.code == 1
    assert "error: dataset.root=/nowhere is not a folder: LIP was expected there" in capsys.readouterr().err
