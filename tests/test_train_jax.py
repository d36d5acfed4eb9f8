"""Training, evaluating and predicting with framework=jax, compared with torch."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import TINY, jax_cache
from PIL import Image
from test_train import composed, run

from ccnet.engine import checkpoints
from ccnet.engine.drawing.tables import read_records
from ccnet.engine.training import TrainingState
from ccnet.models.factory import build
from ccnet.train import train

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
pytest.importorskip("flax", reason="Flax is not installed: pip install -e '.[jax]'")
pytest.importorskip("optax", reason="optax is not installed: pip install -e '.[jax]'")

pytestmark = pytest.mark.slow


NO_DROPOUT = ("model.head.dropout=0", "model.aux_head.dropout=0")


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Let the runs share a compiled step."""
    with jax_cache(tmp_path_factory.mktemp("jax")):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a finished run. "halfway" beside it is what a kill after the first save would have left."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    halfway = folder.with_name("halfway")

    def save(self, *arguments, original=TrainingState.save, **named):
        original(self, *arguments, **named)
        if not halfway.exists():
            shutil.copytree(folder, halfway)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(TrainingState, "save", save)
        run(folder, "framework=jax", *NO_DROPOUT)
    return folder


def test_the_result_names_the_device_of_jax_although_torch_uses_the_cpu(finished):
    from ccnet.engine.training.steps.jax_step import JaxStep

    recorded = json.loads((finished / "result.json").read_text())["provenance"]
    assert "thread" in recorded["machine"] and recorded["jax"] == jax.__version__
    device = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")
    step = SimpleNamespace(mesh=SimpleNamespace(devices=[device]))
    assert JaxStep.provenance(step)["machine"] == "NVIDIA H100"


def test_a_jax_run_gives_the_same_results_as_a_torch_run(finished, tmp_path):
    run(tmp_path / "torch", *NO_DROPOUT)
    for name in ("train.csv", "val.csv"):
        ours, theirs = read_records(finished / name), read_records(tmp_path / "torch" / name)
        assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    assert {path.name for path in finished.iterdir()} == {path.name for path in (tmp_path / "torch").iterdir()}
    for ours, theirs in zip(
        read_records(finished / "train.csv"), read_records(tmp_path / "torch" / "train.csv"), strict=True
    ):
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-3)
        assert float(ours["lr"]) == float(theirs["lr"])
    saved, expected = (checkpoints.load(folder / "last.pt") for folder in (finished, tmp_path / "torch"))
    assert {key: tensor.shape for key, tensor in saved.weights.items()} == {
        key: tensor.shape for key, tensor in expected.weights.items()
    }
    states = [saved.training["optimizer"]["state"], expected.training["optimizer"]["state"]]
    assert states[0].keys() == states[1].keys()
    for ours, theirs in zip(states[0].values(), states[1].values(), strict=True):
        assert ours["step"] == theirs["step"] == 4
        assert ours["exp_avg"].shape == theirs["exp_avg"].shape


def test_parts_learn_as_differently_as_in_torch(tmp_path):
    weights = tmp_path / "resnet10t.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), weights)
    options = [
        "frozen_stages=1", "norm_eval=true", "optimizer.lr_factors={backbone:0.1,bias:2}",
        "optimizer.norm_weight_decay=0", f"backbone.weights={weights}", "recipe.max_iters=2", *NO_DROPOUT,
    ]  # fmt: skip
    for name in ("jax", "torch"):
        run(tmp_path / name, f"framework={name}", *options)
    ours, theirs = (checkpoints.load(tmp_path / name / "last.pt") for name in ("jax", "torch"))
    start = build(composed(*options, "num_classes=4").model).state_dict()
    for name, value in theirs.weights.items():
        assert torch.equal(ours.weights[name], start[name]) == torch.equal(value, start[name]), name
        assert torch.allclose(ours.weights[name], value, rtol=1e-3, atol=2e-3), name
    groups = [saved.training["optimizer"]["param_groups"] for saved in (ours, theirs)]
    assert groups[0] == groups[1] and len(groups[0]) == 5


def test_a_resumed_run_equals_an_uninterrupted_one(finished, tmp_path):
    folder = shutil.copytree(finished.with_name("halfway"), tmp_path / "run")
    saved = checkpoints.load(folder / "last.pt")
    assert saved.iteration == 2
    train(composed("framework=jax", *NO_DROPOUT), folder, saved)
    broken, unbroken = (checkpoints.load(folder / "last.pt") for folder in (folder, finished))
    for key, tensor in unbroken.weights.items():
        assert torch.equal(broken.weights[key], tensor), key


def test_a_non_finite_step_is_counted(tmp_path, monkeypatch):
    """test_jax_step.py tests that such a step changes nothing."""
    from ccnet.engine.training.steps.jax_step import JaxStep

    placed = []

    def spoil(self, images, labels, original=JaxStep.place):
        placed.append(labels)
        return original(self, images, torch.full_like(labels, 200) if len(placed) == 3 else labels)  # no such class

    monkeypatch.setattr(JaxStep, "place", spoil)
    run(tmp_path, "framework=jax", *NO_DROPOUT, "skip_nonfinite=1")
    saved = checkpoints.load(tmp_path / "last.pt")
    assert (saved.iteration, saved.training["skipped"]) == (4, 1)
    assert [row["loss"] for row in read_records(tmp_path / "train.csv")].count("nan") == 1


def test_either_framework_evaluates_and_predicts(finished, run_entry, tmp_path):
    scores, masks = [], []
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (65, 65, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    for framework in ("torch", "jax"):
        output = tmp_path / framework
        common = (f"checkpoint={finished}/last", f"framework={framework}", "device=cpu", f"output={output}")
        run_entry("evaluate.py", *common, "num_workers=0", "protocol=ms_flip", "protocol.scales=[0.75,1.0]")
        (written,) = output.glob("last_val_ms_flip_*.json")
        scores.append(json.loads(written.read_text())["pixel_accuracy"])
        run_entry("predict.py", *common, f"input={tmp_path}/photo.png")
        masks.append(np.array(Image.open(output / "photo.png")))
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert (masks[0] == masks[1]).mean() > 0.999


@pytest.mark.parametrize("model", ["ccnet", "mask_rcnn"])
def test_an_unsupported_network_stops_the_run_before_data_is_read(tmp_path, monkeypatch, model):
    monkeypatch.setattr("ccnet.data.build.instantiate", lambda *_, **__: pytest.fail("the data was read"))
    overrides = ["backbone=timm", "backbone.name=test_nfnet"] if model == "ccnet" else ["model=mask_rcnn"]
    with pytest.raises(ValueError, match=r"has no JAX counterpart: JAX supports the backbones that docs/jax\.md lists"):
        run(tmp_path, "framework=jax", *overrides)


def test_errors_name_what_jax_does_not_support(run_entry):
    for options, message in (
        (["framework=tensorflow"], "framework is 'tensorflow': choose 'torch' or 'jax'"),
        (["framework=jax", "optimizer.algorithm._target_=torch.optim.Adam"], "does not support Adam with these"),
        (["framework=jax", "device=cuda"], "device=cuda, but JAX finds no such device"),
        (["framework=jax", "~model.backbone"], "missing 1 required positional argument: 'backbone'"),
    ):
        done = run_entry("train.py", *TINY, *options, ok=False)
        assert message in done.stderr
