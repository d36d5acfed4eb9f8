"""The options of docs/training.md, many at once: a run resumes exactly, and two processes train as one."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from PIL import Image
from test_parts import ALL, steps
from two_processes import together

from ccnet.engine import checkpoints
from ccnet.engine.training.state import TrainingState
from ccnet.train import run

pytestmark = pytest.mark.slow

SCORES = {1: 0.5, 2: 0.4, 3: 0.45}  # of the validation after each iteration: patience=2 ends the run at the third of 6
OPTIONS = [
    "dataset=folder", "dataset.classes=[rest,square]", "dataset.class_weights=auto", "dataset.val_share=0.34",
    "recipe.train_transform.crop_size=[33,33]", "recipe.head.channels=8", "recipe.batch_size=2",
    "recipe.epochs=3", "recipe.val_every=1", "recipe.patience=2", "recipe.monitor=IoU/square",
    "backbone=resnet10t", "backbone.in_channels=4", "frozen_stages=1", "grad_checkpointing=true", "ema=0.5",
    "optimizer.lr_factors={backbone:0.1,bias:2}", "optimizer.norm_weight_decay=0",
    "loss=ce_ccl", "loss/term=[dice,focal,lovasz]", "loss.ramp.ccl=9", "loss.ramp.dice=2",
    "log_every=1", "num_workers=0", "logger=none", "device=cpu",
]  # fmt: skip
STEPS = [*ALL, "model.head.dropout=0", "model.aux_head.dropout=0", "optimizer=sgd"]


def write_data(folder):
    """Write images of four channels, whose last one shows the class, and weights; return the options for both."""
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for index in range(6):
        labels = np.zeros((33, 33), dtype=np.uint8)
        labels[index : index + 16, 8 : 20 + index] = 1  # the processes read different numbers of pixels per class
        pixels = generator.integers(0, 100, (33, 33, 4)).astype(np.uint8)
        pixels[..., 3] += 100 * labels
        np.save(folder / "images" / f"{index}.npy", pixels)
        Image.fromarray(labels).save(folder / "masks" / f"{index}.png")
    torch.save(timm.create_model("resnet10t").state_dict(), folder / "weights.pth")
    data = [f"dataset.images={folder / 'images'}", f"dataset.masks={folder / 'masks'}"]
    return data, f"backbone.weights={folder / 'weights.pth'}"


def trained_twice(rank=0, number=1, *, folder, data, weights):
    """Train in "whole", and in "again" from its second of three iterations; return the scores.

    Return also the state after some steps with `norm_eval`, which would hide the running statistics from the others.
    """
    measured, record = [], TrainingState.record

    def scripted(self, scores, score):
        measured.append(score)
        return record(self, scores, SCORES[self.iteration])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainingState, "record", scripted)
        run(*OPTIONS, *data, weights, folder=folder / "whole")
        if rank == 0:
            (folder / "again").mkdir()
            shutil.copy(folder / "whole" / "previous.pt", folder / "again" / "last.pt")
        if number > 1:
            dist.barrier()
        run(f"resume={folder / 'again'}", folder=folder / "again")
    _, state = steps(rank, number, overrides=[*STEPS, weights], count=2)
    return measured, state


def assert_exactly(again, whole):
    """Compare two checkpoints bit for bit."""
    for ours, theirs in ((again.weights, whole.weights), (again.training["ema"], whole.training["ema"])):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    states = [checkpoint.training["optimizer"]["state"] for checkpoint in (again, whole)]
    for index, entry in states[0].items():
        assert torch.equal(entry["momentum_buffer"], states[1][index]["momentum_buffer"])
    for name in ("schedule", "stale", "best_score", "validated"):
        assert again.training[name] == whole.training[name], name


def assert_close(two, one):
    assert two.keys() == one.keys()
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=1e-4, atol=1e-5), name


def test_every_option_resumes_exactly_and_two_processes_equal_one(tmp_path):
    pytest.importorskip("segmentation_models_pytorch", reason="pip install 'ccnet-segmentation[losses]'")
    data, weights = write_data(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    scores, state = trained_twice(folder=tmp_path / "one", data=data, weights=weights)
    work = partial(trained_twice, number=2, folder=tmp_path / "two", data=data, weights=weights)
    for found, of_steps in together(work, tmp_path):
        assert found == pytest.approx(scores, abs=0.02)
        assert_close(of_steps, state)
    for name in ("one", "two"):
        whole, again = (checkpoints.load(tmp_path / name / part / "last.pt") for part in ("whole", "again"))
        assert_exactly(again, whole)
        assert whole.config["recipe"]["max_iters"] == whole.config["optimizer"]["schedule"]["total_iters"] == 6
        assert (whole.iteration, whole.training["stale"], whole.training["best_score"]) == (3, 2, 0.5)
        assert json.loads((tmp_path / name / "again" / "result.json").read_text())["best_IoU/square"] == 50
    for file in ("last.pt", "best.safetensors"):
        one, two = (checkpoints.load(tmp_path / name / "whole" / file) for name in ("one", "two"))
        assert one.iteration == two.iteration == (3 if file == "last.pt" else 1)
        assert one.config["class_weights"] == two.config["class_weights"] != [1, 1]
        assert_close(two.weights, one.weights)
    assert any(not torch.equal(value, whole.training["ema"][name]) for name, value in whole.weights.items())
