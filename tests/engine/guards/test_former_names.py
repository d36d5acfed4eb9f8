"""Checkpoints that predate the package `ccnet` refer to classes that have since moved."""

import pytest
import torch
from conftest import ROOT, configured
from former_configs import former_names
from former_targets import FORMER_TARGETS
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from ccnet.data.build import build_dataset
from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.guards import plain
from ccnet.engine.guards.former_names import present_names
from ccnet.models import list_models
from ccnet.models.factory import build

PAIRS = [(part, target) for part, targets in FORMER_TARGETS.items() for target in targets]
# Classes that were also renamed, former -> current name.
RENAMED = {"DirectHead": "PyramidHead", "GivenLosses": "DetectionLoss"}


def composed(*overrides):
    return plain(configured("backbone=beacons", "num_classes=4", *overrides))


def choices(group):
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def targets(node):
    if isinstance(node, dict):
        own = [node["_target_"]] if isinstance(node.get("_target_"), str) else []
        return own + [target for value in node.values() for target in targets(value)]
    return [target for value in node for target in targets(value)] if isinstance(node, list) else []


def written(path, config, weights=None):
    """Write a checkpoint whose configuration contains former names."""
    config = former_names(config)
    assert not any(target.startswith("ccnet") for target in targets(config))
    checkpoints.save(Checkpoint(weights or {"w": torch.ones(1)}, config, list("abcd"), [[0, 0, 0]] * 4, 1, {}), path)
    return path


@pytest.mark.parametrize(("part", "former"), PAIRS)
def test_every_former_target_maps_to_an_allowed_target(tmp_path, part, former):
    present = present_names({"_target_": former})
    found = get_object(present["_target_"])
    name = former.rpartition(".")[2]
    assert found.__name__ == RENAMED.get(name, name)
    assert former_names(present) == {"_target_": former}
    path = tmp_path / "best.safetensors"
    checkpoints.save(Checkpoint({"w": torch.ones(1)}, {part: {"_target_": former}}, [], [], 1, {}), path)
    assert checkpoints.load(path).config == {part: present}


def test_other_targets_keep_their_names():
    for target in (
        "torch.optim.SGD",
        "database.Folder",
        "models_of_mine.Net",
        "ccnet.models.segmentor.Segmentor",
        None,
    ):
        node = {"a": [{"_target_": target}], "_target_": None}
        assert present_names(node) == node


@pytest.mark.slow
@pytest.mark.parametrize("model", list_models())
def test_every_network_is_rebuilt(tmp_path, model):
    config = composed(
        f"model={model}", "recipe.head.channels=16", *(["task=detection"] if model == "mask_rcnn" else [])
    )
    made = build(config["model"])
    path = written(tmp_path / "best.safetensors", config, made.state_dict())
    rebuilt = checkpoints.network(checkpoints.load(path))
    assert all(torch.equal(tensor, rebuilt.state_dict()[key]) for key, tensor in made.state_dict().items())


@pytest.mark.parametrize("protocol", choices("protocol"))
def test_every_protocol_is_instantiated(tmp_path, protocol):
    config = composed(f"protocol={protocol}", *(["dataset=lip"] if protocol == "letterbox_flip" else []))
    saved = checkpoints.load(written(tmp_path / "best.safetensors", config))
    assert type(instantiate(saved.config["protocol"])) is type(instantiate(config["protocol"]))


@pytest.mark.parametrize("dataset", choices("dataset"))
def test_every_data_set_is_resolved(tmp_path, dataset):
    config = composed(f"dataset={dataset}")
    saved = checkpoints.load(written(tmp_path / "best.safetensors", config))
    assert saved.config == config
    if dataset == "synthetic":
        samples = build_dataset(OmegaConf.create(saved.config["dataset"]), "val", lambda image, labels: (image, labels))
        assert samples[0][0].ndim == 3
    else:
        with pytest.raises(InstantiationException, match=r"dataset\."):  # raised by the class, which looks for files
            build_dataset(OmegaConf.create(saved.config["dataset"]), "val", None)


@pytest.mark.slow
def test_every_loss_optimizer_task_and_logger_is_resolved(tmp_path):
    seen = set()
    for group in ("loss", "optimizer", "task", "logger"):
        for choice in choices(group):
            config = composed(f"{group}={choice}")
            saved = checkpoints.load(written(tmp_path / "best.safetensors", config))
            assert saved.config == config
            seen |= set(targets(former_names(config[group])))
    assert seen >= {target for part in ("loss", "task", "logger") for target in FORMER_TARGETS[part]}
