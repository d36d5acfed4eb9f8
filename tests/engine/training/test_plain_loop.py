"""A run with many options computes what a loop of a few lines in plain torch computes, step by step."""

import copy
from math import sqrt

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from ccnet.engine import checkpoints
from ccnet.engine.drawing.tables import read_records
from ccnet.engine.training.steps.torch_step import TorchStep
from ccnet.train import run

pytestmark = pytest.mark.slow

STEPS, RATE, DECAY, CLASS_WEIGHTS, CLIP, EMA, RAMP = 3, 0.02, 0.01, [0.5, 2.0], 1.5, 0.3, 2
MOMENTUM, POWER, AUX = 0.9, 0.9, 0.4  # defaults
OPTIONS = [
    "dataset=folder", "dataset.classes=[rest,square]", f"dataset.class_weights={CLASS_WEIGHTS}",
    "dataset.val_share=0.2", "recipe.train_transform.crop_size=[25,33]", "recipe.batch_size=4", "accumulate=2",
    f"recipe.max_iters={STEPS}", f"recipe.val_every={STEPS}", f"loss.ramp.aux={RAMP}", "model.head.dropout=0",
    "model.aux_head.dropout=0", "recipe.head.channels=8", "recipe.head.gamma=fixed", "backbone=beacons",
    "frozen_stages=1", "norm_eval=true", "optimizer=sgd", f"recipe.lr={RATE}", f"recipe.weight_decay={DECAY}",
    "optimizer.lr_factors={backbone:0.1,bias:2}", "optimizer.norm_weight_decay=0", f"clip_norm={CLIP}", f"ema={EMA}",
    "log_every=1", "num_workers=0", "logger=none", "device=cpu",
]  # fmt: skip


def write_data(folder):
    """Write five images of squares, with different numbers of ignored pixels, and weights; return the options."""
    generator = np.random.default_rng(0)
    for index in range(5):
        labels = np.zeros((27, 35), dtype=np.uint8)
        labels[index : index + 12, 8 : 20 + index] = 1
        labels[: 5 * (index % 3)] = 255
        pixels = generator.integers(0, 100, (27, 35, 3)).astype(np.uint8) + 100 * (labels == 1)[..., None]
        for kind, array in (("images", pixels.astype(np.uint8)), ("masks", labels)):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{index}.png")
    torch.save(timm.create_model("resnet10t").state_dict(), folder / "weights.pth")
    places = {"dataset.images": "images", "dataset.masks": "masks", "backbone.weights": "weights.pth"}
    return [f"{option}={folder / name}" for option, name in places.items()]


@pytest.fixture
def recorded(monkeypatch):
    """Return the network that the step of the next run starts from, and its batches, once the run has finished."""
    start, batches = [], []

    class Recorded(TorchStep):
        def __init__(self, task, model, *arguments, **options):
            start.append(copy.deepcopy(model))
            super().__init__(task, model, *arguments, **options)

        def __call__(self, images, labels, iteration):
            batches.append((images.clone(), labels.clone()))
            return super().__call__(images, labels, iteration)

    monkeypatch.setattr("ccnet.engine.training.steps.frameworks.TorchStep", Recorded)
    return start, batches


def test_a_run_equals_a_plain_loop(tmp_path, recorded):
    run(*OPTIONS, *write_data(tmp_path), folder=tmp_path / "run")
    (model,), batches = recorded
    saved, logged = checkpoints.load(tmp_path / "run" / "last.pt"), read_records(tmp_path / "run" / "train.csv")
    assert len(batches) == len(logged) == STEPS

    frozen = tuple(f"backbone.net.{name}." for name in ("conv1", "bn1", "layer1"))
    trained = {name: parameter for name, parameter in model.named_parameters() if not name.startswith(frozen)}
    factors = {name: 0.1 if name.startswith("backbone") else 2 if name.endswith("bias") else 1 for name in trained}
    momentum = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    average = {name: value.clone() for name, value in model.state_dict().items()}
    for module in model.train().backbone.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)

    for step, (images, labels) in enumerate(batches):
        loss, number = 0.0, (labels != 255).sum()
        for part in (slice(0, 2), slice(2, 4)):
            output = model(images[part])
            options = {"weight": torch.tensor(CLASS_WEIGHTS), "reduction": "sum", "ignore_index": 255}
            main, aux = (cross_entropy(output[name], labels[part], **options) for name in ("out", "aux"))
            loss = loss + (main + AUX * min(step / RAMP, 1) * aux) / number
        gradients = torch.autograd.grad(loss, list(trained.values()))
        norm = sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))
        rate = RATE * (1 - step / STEPS) ** POWER
        found = {"loss": loss.item(), "grad_norm": norm, "lr": rate}
        assert {name: float(logged[step][name]) for name in found} == pytest.approx(found, rel=1e-4)
        with torch.no_grad():
            for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
                decay = DECAY * parameter if parameter.ndim > 1 else 0
                momentum[name].mul_(MOMENTUM).add_(gradient * min(1, CLIP / norm) + decay)
                parameter -= factors[name] * rate * momentum[name]
        share = 1 - min(EMA, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            average[name] = average[name].lerp(value, share) if value.is_floating_point() else value.clone()

    assert norm > CLIP  # the last step is clipped, too
    for found, expected in ((saved.weights, model.state_dict()), (saved.training["ema"], average)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5), name
