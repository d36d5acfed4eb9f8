"""Training, resuming, evaluating and predicting from the command line."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import SHARED, TINY, TINY_CAMVID, at_call, composed
from PIL import Image

from ccnet import train as training
from ccnet.data.build import build_dataset
from ccnet.engine import checkpoints
from ccnet.engine.drawing.tables import read_records
from ccnet.engine.training.steps.torch_step import train_step
from ccnet.models.factory import build

pytestmark = pytest.mark.slow


HERE = ("device=cpu", "num_workers=0")  # for an evaluation; starting a data worker takes seconds once JAX runs


def run(folder, *overrides, saved=None):
    folder.mkdir(exist_ok=True)
    return training.train(composed(*overrides), folder, saved)


def test_a_run_writes_scalars_images_and_checkpoints(whole):
    train = read_records(whole / "train.csv")
    assert [row["iteration"] for row in train] == ["1", "2", "3", "4"]
    assert {"loss", "loss/main", "loss/aux", "grad_norm", "lr", "images_per_s", "step_s", "data_wait"} <= set(train[0])
    assert float(train[0]["loss"]) == pytest.approx(
        float(train[0]["loss/main"]) + 0.4 * float(train[0]["loss/aux"]), rel=1e-5
    )
    assert [row["iteration"] for row in read_records(whole / "val.csv")] == ["2", "4"]
    assert "IoU/red beacon" in read_records(whole / "val.csv")[0]
    assert [row["class"] for row in read_records(whole / "val_classes.csv")][-1] == "mean"
    for picture in ("curves.png", "predictions.png"):
        assert np.array(Image.open(whole / picture)).std() > 10
    assert {path.name for path in whole.iterdir()} == {
        "train.csv", "val.csv", "val_classes.csv", "curves.png", "predictions.png",
        "config.yaml", "best.safetensors", "last.pt", "previous.pt", "result.json",
    }  # fmt: skip


def test_loss_falls_on_one_batch():
    config = composed("recipe.lr=0.003")
    from hydra.utils import instantiate

    config.num_classes = 4
    task = instantiate(config.task)
    model = build(config.model).train()
    criterion = instantiate(config.loss)
    optimizer = instantiate(config.optimizer.algorithm, model.parameters())
    from ccnet.data.transforms import eval_transform

    dataset = build_dataset(config.dataset, "train", eval_transform())
    images, labels = (torch.stack(part) for part in zip(*(dataset[index] for index in range(2)), strict=True))
    losses = [train_step(task, model, criterion, optimizer, images, labels).loss.item() for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


class Killed(Exception):
    """Simulates anything that ends a process between two iterations."""


@pytest.mark.parametrize("options", [(), ("optimizer=sgd", "loss=ce_ccl")], ids=["adamw", "sgd_ccl"])
def test_a_resumed_run_is_bitwise_equal_to_an_uninterrupted_one(tmp_path, monkeypatch, options):
    def kill():
        raise Killed

    run(tmp_path / "whole", *options)
    monkeypatch.setattr("ccnet.engine.training.steps.torch_step.train_step", at_call(4, kill, train_step))
    with pytest.raises(Killed):
        run(tmp_path / "broken", *options)
    monkeypatch.setattr("ccnet.engine.training.steps.torch_step.train_step", train_step)
    torch.rand(7)  # as if the process had done other work in between
    saved = checkpoints.load(tmp_path / "broken" / "last.pt")
    assert saved.iteration == 2
    run(tmp_path / "broken", *options, saved=saved)

    whole, resumed = (checkpoints.load(tmp_path / name / "last.pt") for name in ("whole", "broken"))
    assert all(saved.training.pop("seconds") > 0 for saved in (whole, resumed))  # measured, as those in train.csv
    assert (whole.source, resumed.source) == tuple(tmp_path / name / "last.pt" for name in ("whole", "broken"))
    assert_same(*({key: value for key, value in vars(one).items() if key != "source"} for one in (whole, resumed)))
    for name in ("train.csv", "val.csv"):
        one, two = read_records(tmp_path / "whole" / name), read_records(tmp_path / "broken" / name)
        timed = ("images_per_s", "step_s", "data_wait", "memory_mib")
        assert [{k: v for k, v in row.items() if k not in timed} for row in one] == [
            {k: v for k, v in row.items() if k not in timed} for row in two
        ]


def assert_same(one, two, where="checkpoint"):
    """Assert that two nested structures are equal, with bitwise equal tensors."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for index, pair in enumerate(zip(one, two, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert one == two or (one != one and two != two), where


def test_resume_uses_the_configuration_of_the_run(whole, tmp_path, run_entry):
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "result.json").unlink()
    run_entry("train.py", f"resume={folder}", "log_every=3")
    assert "log_every: 3\n" in (folder / "config.yaml").read_text()
    assert "device: cpu\n" in (folder / "config.yaml").read_text()
    assert json.loads((folder / "result.json").read_text())["iterations"] == 4
    refused = run_entry("train.py", f"resume={folder}", "recipe.lr=1", ok=False)
    assert "error: a resumed run keeps its own configuration: remove recipe.lr=1" in refused.stderr


@pytest.mark.parametrize("name", ["best", "last.pt"])
def test_evaluate_reproduces_the_last_validation_exactly(whole, tmp_path, run_entry, name):
    done = run_entry("evaluate.py", f"checkpoint={whole / name}", f"output={tmp_path / 'scores'}", *HERE)
    stem = f"{name.removesuffix('.pt')}_val_whole"
    scores = json.loads((tmp_path / "scores" / f"{stem}.json").read_text())
    saved = checkpoints.load(checkpoints.find(whole / name))
    assert {key: scores[key] for key in saved.scores} == json.loads(json.dumps(saved.scores).replace("NaN", "null"))
    if name == "last.pt":
        assert float(read_records(whole / "val.csv")[-1]["mIoU"]) == 100 * scores["miou"]
    assert f"mIoU {100 * scores['miou']:.2f}" in done.stdout
    assert len(read_records(tmp_path / "scores" / f"{stem}.csv")) == 4 + 1


def test_evaluate_with_other_protocols(whole, tmp_path, run_entry):
    few = ("protocol.scales=[0.5,1.0]",)
    for protocol, options in (("slide", ()), ("ms_flip", few), ("slide_ms_flip", few)):
        run_entry(
            "evaluate.py", f"checkpoint={whole / 'best'}", f"protocol={protocol}", *options,
            f"output={tmp_path}", *HERE,
        )  # fmt: skip
    names = {"slide": "slide", "slide_ms_flip": "slide_ms_flip_scales-0.5-1.0"}
    scores = {p: json.loads((tmp_path / f"best_val_{name}.json").read_text()) for p, name in names.items()}
    # The window is the training crop, here the whole image.
    assert scores["slide"]["miou"] == checkpoints.load(whole / "best.safetensors").scores["miou"]
    assert scores["slide_ms_flip"]["images"] == 3


def test_predict_writes_masks_in_the_palette_and_overlays(whole, tmp_path, run_entry):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(2):
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(
            frames / f"frame_{index}.png"
        )
    output = tmp_path / "out"
    run_entry("predict.py", f"checkpoint={whole / 'best'}", f"input={frames}", f"output={output}", "device=cpu")
    assert sorted(path.name for path in output.iterdir()) == [
        "frame_0.png", "frame_0_overlay.png", "frame_1.png", "frame_1_overlay.png",
    ]  # fmt: skip
    mask = Image.open(output / "frame_0.png")
    saved = checkpoints.load(checkpoints.find(whole / "best"))
    picture = torch.from_numpy(np.array(Image.open(frames / "frame_0.png"))).permute(2, 0, 1)[None] / 255
    want = checkpoints.network(saved)(picture)["out"].argmax(dim=1)[0]
    assert (mask.mode, mask.size) == ("P", (70, 50))
    assert np.array_equal(np.array(mask), want.numpy())
    assert mask.getpalette()[:12] == [channel for colour in saved.palette for channel in colour]
    overlay = Image.open(output / "frame_0_overlay.png")
    assert overlay.size[0] > 70  # the legend is beside the image
    run_entry("predict.py", f"checkpoint={whole / 'best'}", f"input={frames / 'frame_1.png'}", "device=cpu")
    assert (tmp_path / "predictions" / "frame_1.png").exists()


def test_a_sweep_ends_with_one_table_and_one_figure(tmp_path, run_entry):
    done = run_entry("train.py", "-m", "model.head.recurrence=0,1", *TINY, "recipe.max_iters=1", "logger=wandb")
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    table = read_records(folder / "sweep.csv")
    assert [row["run"] for row in table] == ["model.head.recurrence=0", "model.head.recurrence=1"]
    assert all(0 <= float(row["mIoU"]) <= 100 for row in table)
    assert str(folder.relative_to(tmp_path) / "sweep.png") in done.stdout
    assert np.array(Image.open(folder / "sweep.png")).std() > 10
    # The second run in the process equals the same run on its own: no state is left over from the first.
    run(tmp_path / "alone", "model.head.recurrence=1", "recipe.max_iters=1")
    in_sweep, alone = (checkpoints.load(path / "last.pt").weights for path in (folder / "1", tmp_path / "alone"))
    assert_same(in_sweep, alone)
    # W&B without an account: offline, one run each, no prompts.
    assert len(list(folder.glob("*/wandb/offline-run-*"))) == 2


def test_camvid_from_the_command_line(camvid_root, tmp_path, run_entry, pictures):
    run_entry("train.py", *TINY_CAMVID, f"dataset.root={camvid_root}", "recipe.max_iters=2")
    (run_folder,) = (tmp_path / "outputs" / "ccnet_camvid").iterdir()
    costs = json.loads((run_folder / "result.json").read_text())
    weights = checkpoints.network(checkpoints.load(run_folder / "best.safetensors")).parameters()
    assert costs["parameters"] == sum(weight.numel() for weight in weights) / 1e6 and costs["gflops"] > 0
    # On another machine, only the root has to be set again.
    moved = shutil.move(camvid_root, tmp_path / "moved")
    best = f"checkpoint={run_folder / 'best'}"
    run_entry("evaluate.py", best, f"dataset.root={moved}", *HERE, f"output={tmp_path / 'scores'}")
    scores = json.loads((tmp_path / "scores" / "best_val_whole.json").read_text())
    assert scores["miou"] == checkpoints.load(run_folder / "best.safetensors").scores["miou"]
    for picture in ("best_val_whole.png", "best_val_whole_confusion.png"):
        assert np.array(Image.open(tmp_path / "scores" / picture)).std() > 10
    missing = run_entry("evaluate.py", best, "device=cpu", ok=False)
    assert f"error: dataset.root={camvid_root} is not a folder: CamVid was expected there" in missing.stderr


@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="no ../shared/weights on this machine")
def test_real_imagenet_weights_fit_the_backbone():
    from ccnet.models.backbone import TimmBackbone

    path = SHARED / "weights" / "mobilenetv2_100_onnxzoo7.pth"
    loaded = TimmBackbone("mobilenetv2_100", weights=path).net.state_dict()
    stored = torch.load(path, weights_only=True)
    assert all(torch.equal(tensor, stored[key]) for key, tensor in loaded.items())
