"""Detection networks in the entry points: the recipe, training, resuming, evaluation, prediction and errors."""

import json
import shutil

import numpy as np
import pytest
import torch
from coco_data import CATEGORIES, coco_root, loaded  # noqa: F401, fixture
from conftest import ROOT, at_call, configured
from hydra.utils import instantiate
from PIL import Image
from torch import nn

from ccnet import train as training
from ccnet.engine import checkpoints
from ccnet.engine.drawing.tables import read_records
from ccnet.engine.guards import plain
from ccnet.engine.training.lr_schedules import WarmupSteps
from ccnet.engine.training.steps.torch_step import train_step

pytest.importorskip("pycocotools", reason="the oracle of these tests: pip install -e '.[dev]'")
from pycocotools import mask as official_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

pytestmark = pytest.mark.slow

SMALL_NET = ["backbone=resnet10t", "backbone.pretrained=false", "model.frozen=false", "model.channels=16"]
TINY = [
    "model=mask_rcnn", "dataset=coco", *SMALL_NET, "recipe.max_iters=2", "recipe.val_every=1", "recipe.batch_size=2",
    "recipe.min_size=64", "recipe.max_size=96", "recipe.lr=0.001", "log_every=1", "num_workers=0", "logger=none",
    "device=cpu",
]  # fmt: skip


def test_schedule_matches_mask_rcnn():
    """Linear warm-up from a third of the learning rate over 500 iterations, decay by a factor of 10 at 60k and 80k."""
    config = composed(ROOT)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=config.recipe.lr)
    assert (config.recipe.batch_size, config.recipe.max_iters, config.recipe.lr) == (16, 90000, 0.02)
    schedule = instantiate(config.optimizer.schedule, optimizer)
    rates = {}
    for iteration in (0, 250, 500, 59_999, 60_000, 80_000, 89_999):
        schedule.last_epoch = iteration
        rates[iteration] = schedule.get_lr()[0]
    assert rates == pytest.approx({
        0: 0.02 / 3, 250: 0.02 * 2 / 3, 500: 0.02, 59_999: 0.02, 60_000: 0.002, 80_000: 0.0002, 89_999: 0.0002
    })  # fmt: skip
    assert WarmupSteps(torch.optim.SGD([parameter], lr=1.0), warmup=0, steps=[]).get_lr() == [1.0]


def composed(root, *overrides):
    return configured("model=mask_rcnn", "dataset=coco", f"dataset.root={root}", *overrides)


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """Return the folder of a finished run of two iterations."""
    folder = tmp_path_factory.mktemp("run")
    training.train(composed(root, *TINY), folder)
    return folder


def test_a_run_writes_scalars_images_and_checkpoints(finished):
    train = read_records(finished / "train.csv")
    terms = ["classifier", "box_reg", "mask", "objectness", "rpn_box_reg"]
    assert float(train[0]["loss"]) == pytest.approx(sum(float(train[0][f"loss/{term}"]) for term in terms), rel=1e-5)
    assert {"mask_AP", "box_AP", "mask_AP50", "images_per_s", "mask AP/disc"} <= set(
        read_records(finished / "val.csv")[0]
    )
    assert [row["class"] for row in read_records(finished / "val_classes.csv")] == ["bar", "disc", "wedge", "mean"]
    for picture in ("curves.png", "predictions.png"):
        assert np.array(Image.open(finished / picture)).std() > 10
    assert list(json.loads((finished / "result.json").read_text()))[1] == "mask_AP"
    assert checkpoints.load(finished / "best.safetensors").classes == ["bar", "disc", "wedge"]


def test_a_resumed_run_is_bitwise_equal_to_an_uninterrupted_one(root, finished, tmp_path, monkeypatch):
    def kill():
        raise InterruptedError

    monkeypatch.setattr("ccnet.engine.training.steps.torch_step.train_step", at_call(2, kill, train_step))
    with pytest.raises(InterruptedError):
        training.train(composed(root, *TINY), tmp_path)
    monkeypatch.setattr("ccnet.engine.training.steps.torch_step.train_step", train_step)
    saved = checkpoints.load(tmp_path / "last.pt")
    assert saved.iteration == 1
    training.train(composed(root, *TINY), tmp_path, saved)
    whole, resumed = (checkpoints.load(folder / "last.pt") for folder in (finished, tmp_path))
    assert all(torch.equal(tensor, resumed.weights[key]) for key, tensor in whole.weights.items())
    assert json.dumps(whole.scores) == json.dumps(resumed.scores)


def test_a_run_resumes_with_settings_that_a_new_run_may_not_have(root, finished, tmp_path):
    """Earlier versions ignored the protocol, and null stood for false."""
    earlier = composed(root, *TINY, "protocol=ms_flip", "backbone.pretrained=null")
    saved = checkpoints.load(finished / "previous.pt")
    saved.config["protocol"] = plain(earlier.protocol)
    saved.config["model"]["backbone"]["pretrained"] = None
    checkpoints.save(saved, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="pretrained is null, but must be true or false"):
        training.train(earlier, tmp_path / "new")
    with pytest.raises(ValueError, match="would not change: remove protocol"):
        training.train(composed(root, *TINY, "protocol=ms_flip"), tmp_path / "new")
    training.train(earlier, tmp_path, checkpoints.load(tmp_path / "last.pt"))
    assert checkpoints.load(tmp_path / "last.pt").iteration == 2


def test_evaluate_matches_validation_and_its_saved_results_match_pycocotools(root, finished, tmp_path, run_entry):
    last = f"checkpoint={finished / 'last.pt'}"
    done = run_entry("evaluate.py", last, f"output={tmp_path}", "device=cpu", "num_workers=0")
    scores = json.loads((tmp_path / "last_val.json").read_text())
    saved = checkpoints.load(finished / "last.pt").scores
    assert json.dumps({key: scores[key] for key in saved}) == json.dumps(saved).replace("NaN", "null")
    assert f"mask_AP {100 * scores['mask'][0]:.2f}" in done.stdout
    results = json.loads((tmp_path / "last_val_results.json").read_text())
    official = COCO(root / "annotations" / "instances_val2017.json")
    assert {result["category_id"] for result in results} <= {1, 3, 90}
    evaluation = COCOeval(official, official.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert scores["box"][0] == pytest.approx(evaluation.stats[0], abs=1e-12)
    refused = run_entry("evaluate.py", f"checkpoint={finished / 'last.pt'}", "protocol=slide", "device=cpu", ok=False)
    assert "error: protocol=slide: Mask R-CNN processes whole images" in refused.stderr
    refused = run_entry("evaluate.py", last, "save_predictions=true", "device=cpu", ok=False)
    assert "error: save_predictions and submission are for networks that label pixels: remove them" in refused.stderr


def test_predict_saves_and_draws_objects(root, finished, tmp_path, run_entry):
    picture = root / "val2017" / "000000000010.png"
    run_entry("predict.py", f"checkpoint={finished / 'best'}", f"input={picture}", f"output={tmp_path}", "device=cpu")
    found = json.loads((tmp_path / "000000000010.json").read_text())
    assert all(entry["category"] in ("bar", "disc", "wedge") and 0 <= entry["score"] <= 1 for entry in found)
    assert all(official_mask.decode(entry["segmentation"]).shape == (80, 60) for entry in found)
    assert Image.open(tmp_path / "000000000010_overlay.png").size == (60, 80)
    without_effect = ("video=out.gif", "protocol=slide", "device=cpu")
    refused = run_entry("predict.py", f"checkpoint={finished}", f"input={picture}", *without_effect, ok=False)
    assert "error: this network detects objects: remove video, protocol, which only label maps have" in refused.stderr


def test_wandb_accepts_the_boxes(root):
    """``wandb.Image`` accepts what the task passes to it, even without any object."""
    import wandb

    from ccnet.engine.evaluation.tasks.detection import Detection

    image, target = loaded(root)[0]
    empty = {key: value[:0] for key, value in target.items() if key != "image_id"} | {"scores": torch.zeros(0)}
    found = target | {"scores": torch.full((len(target["labels"]),), 0.75)}
    panels = Detection().wandb_panels([(image, target, found), (image, target, empty)], ["bar", "disc", "wedge"])
    for drawn in panels:
        wandb.Image(image.permute(1, 2, 0).numpy(), **drawn)
    assert panels[0]["boxes"]["prediction"]["box_data"][0]["box_caption"].endswith("0.75")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.frozen=true"], "load pretrained weights with backbone.weights=FILE, or set model.frozen=false"),
        (["model=ccnet"], "this data set is for detection: set model=mask_rcnn"),
        (["protocol=slide", "protocol.crop_size=[64,64]"], "which protocol=slide would not change: remove protocol"),
        (["protocol=ms_flip"], "which protocol=multiscale would not change: remove protocol"),
        (["loss=ce"], "error: Mask R-CNN computes its own losses, to which no terms can be added: set loss=detection"),
        (["loss/term=dice"], "error: Mask R-CNN computes its own losses, to which no terms can be added: set loss="),
        (["dataset.train.split=nowhere"], "lacks nowhere, annotations/instances_nowhere.json of COCO"),
        (["model/context=rcaa"], "Could not find 'model/context/rcaa'"),
    ],
)
def test_user_errors_on_the_command_line(root, run_entry, options, message):
    chosen = [part for part in TINY if part.split("=")[0] not in {option.split("=")[0] for option in options}]
    if "model=ccnet" in options:
        chosen = [part for part in chosen if not part.startswith("model.")]
    done = run_entry("train.py", *chosen, f"dataset.root={root}", *options, ok=False)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_detection_network_cannot_train_on_segmentation_data(run_entry):
    done = run_entry("train.py", "model=mask_rcnn", "device=cpu", "logger=none", ok=False)
    assert "error: model=mask_rcnn detects objects but this data set labels pixels: set dataset=coco" in done.stderr
    done = run_entry("train.py", "loss=detection", "device=cpu", "logger=none", ok=False)
    assert "error: loss=detection is for model=mask_rcnn: set another loss, such as loss=ce" in done.stderr


def test_a_checkpoint_with_other_classes_is_rejected(root, finished, tmp_path, run_entry):
    other = shutil.copytree(root, tmp_path / "other")
    file = other / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"categories": [*CATEGORIES, {"id": 5, "name": "ring"}]}))
    done = run_entry("evaluate.py", f"checkpoint={finished / 'best'}", f"dataset.root={other}", "device=cpu", ok=False)
    assert "class 3 is wedge in the checkpoint but ring in the data set: both need the same classes" in done.stderr
