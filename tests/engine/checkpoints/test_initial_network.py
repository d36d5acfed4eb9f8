"""The network that a new run starts from: how it expects images to be scaled, and the order of its classes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from ccnet.engine import checkpoints, runtime
from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.checkpoints.model_card import model_card
from ccnet.engine.evaluation.tasks import Detection, Semantic
from ccnet.engine.guards import plain
from ccnet.models.factory import build, compose_conf

RUN = ["dataset=folder", "logger=none", "num_classes=2"]
NETWORK = ["model=fcn", "recipe.head.channels=8", "backbone=resnet10t", "backbone.pretrained=false"]


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Return the folder of a run that was trained on 12-bit images, with files made of its weights."""
    folder = tmp_path_factory.mktemp("deep")
    config = plain(compose_conf([*RUN, *NETWORK, "dataset.value_range=[0,4095]"], "config"))
    torch.manual_seed(1)  # other weights than those of the networks that the tests build
    network = build(config["model"])
    saved = Checkpoint(network.state_dict(), config, ["a", "b"], [[0, 0, 0], [1, 1, 1]], 1, {})
    checkpoints.save(saved, folder / "best.safetensors")
    checkpoints.write_folder(saved, folder / "published")
    torch.save(network.backbone.net.state_dict(), folder / "timm.pth")
    return folder


def started(*overrides, classes=("a", "b")):
    with runtime.as_command_line(overrides):
        return checkpoints.initial_network(compose_conf([*RUN, *overrides], "config"), None, classes=classes)[0]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["init={}/best", "init={}/published", "backbone.weights={}/best"])
def test_images_are_not_silently_scaled_differently_than_in_the_run_that_weights_come_from(deep, source):
    options = [source.format(deep), *([] if source.startswith("init") else NETWORK)]
    with pytest.raises(ValueError, match=r"with dataset.value_range=\[0, 4095\], .*: set dataset.value_range=\[0,4095"):
        started(*options)
    for chosen in ("dataset.value_range=[0,1023]", "dataset.value_range=null", "++dataset.value_range=null"):
        started(*options, chosen)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "model=gcn",
        "+model/context=none",
        "backbone.mean=[0,0,0]",
        "recipe.head.channels=16",
        "+recipe.min_size=9",
        "+experiment=contexts/gcn",
        "+experiment=[contexts/gcn]",
        "+experiment=contexts/ccnet_r2",  # of a sweep, all of whose runs would be the same
    ],
)
def test_options_of_another_network_are_not_silently_ignored(deep, option):
    with pytest.raises(ValueError, match="already determines the network: remove ") as raised:
        started(f"init={deep}/best", option)
    assert option.partition("=")[0] in str(raised.value)


def test_weights_that_are_not_from_a_run_say_nothing_of_its_images(deep):
    network = started(*NETWORK, f"backbone.weights={deep}/timm.pth")
    stem = checkpoints.load(deep / "best.safetensors").weights["backbone.net.conv1.0.weight"]
    assert torch.equal(network.state_dict()["backbone.net.conv1.0.weight"], stem)


@pytest.mark.parametrize(
    ("classes", "kept"), [(("a", "b"), True), (("c", "d"), True), (("a", "c"), True), (("b", "a"), False)]
)
def test_a_classifier_is_kept_unless_it_would_take_one_class_for_another(deep, classes, kept):
    saved = checkpoints.load(deep / "best.safetensors")
    found = started(f"init={deep}/best", "dataset.value_range=null", classes=classes).state_dict()
    for key, tensor in saved.weights.items():
        assert torch.equal(found[key], tensor) == (kept or "classify." not in key), key


def test_the_embedding_of_a_loss_starts_anew_in_every_run(tmp_path):
    config = plain(compose_conf([*RUN, *NETWORK, "loss=ce_ccl"], "config"))
    saved = Checkpoint(build(config["model"]).state_dict(), config, ["a", "b"], [[0, 0, 0], [1, 1, 1]], 1, {})
    checkpoints.save(saved, tmp_path / "best.safetensors")
    again, other = started(f"init={tmp_path}", "loss=ce_ccl").state_dict(), started(f"init={tmp_path}").state_dict()
    embedding = {key for key in saved.weights if key.startswith("embed.")}
    assert embedding and other.keys() == saved.weights.keys() - embedding
    assert not any(torch.equal(again[key], saved.weights[key]) for key in embedding if saved.weights[key].ndim > 1)
    assert all(torch.equal(again[key], value) for key, value in saved.weights.items() if key not in embedding)


def test_the_terms_of_the_data_behind_initial_weights_are_passed_on(tmp_path):
    for source in ("ccnet_mobilenetv2_camvid", str(tmp_path / "first")):  # a fine-tuned network, and one made of it
        config = compose_conf([*RUN, f"init={source}"], "config")
        network, config = checkpoints.initial_network(config, None, classes=["a", "b"])
        saved = Checkpoint(network.state_dict(), plain(config), ["a", "b"], [[0, 0, 0], [1, 1, 1]], 1, {})
        card = model_card(saved, "streets", record={})
        assert "license_name: data-set-terms" in card and f"| initial weights | {source.split('/')[-1]} |" in card
        data = " ".join(card.split())
        assert "supports. The initial weights were trained on CamVid: " in data and "derived from CamVid, whose" in data
        checkpoints.write_folder(saved, tmp_path / "first")
    restored = checkpoints.load(checkpoints.find(tmp_path / "first"))
    assert "initial weights |" not in model_card(restored, "streets", record={})  # a folder records no locations
    own = model_card(replace(restored, config=restored.config | {"inherited_data": None}), "streets", record={})
    assert "license_name: unknown" in own and "CamVid" not in own


def test_a_network_is_not_scored_on_the_same_classes_in_another_order():
    data = SimpleNamespace(classes=["road", "sky", "car"])
    Semantic().check_classes(["road", "sky", "car"], data)
    Semantic().check_classes(["Straße", "sky", "Auto"], data)
    with pytest.raises(ValueError, match=r"\(car, road, sky and road, sky, car\), so that predictions of road"):
        Semantic().check_classes(["car", "road", "sky"], data)


def test_a_detector_gets_new_classifiers_for_another_number_of_classes(tmp_path):
    options = ["dataset=coco", "backbone=resnet10t", "backbone.pretrained=false"]
    config = plain(compose_conf([*options, "model.channels=4", "num_classes=2"], "config"))
    torch.manual_seed(1)
    saved = Checkpoint(build(config["model"]).state_dict(), config, ["a", "b"], [[0, 0, 0], [1, 1, 1]], 1, {})
    checkpoints.save(saved, tmp_path / "best.safetensors")
    with runtime.as_command_line(["dataset=coco"]):
        config = compose_conf(["dataset=coco", f"init={tmp_path}"], "config")
        network, config = checkpoints.initial_network(config, None, classes=["a", "b", "c"])
    assert config.model.num_classes == 3
    new = {key for key, tensor in network.state_dict().items() if not torch.equal(tensor, saved.weights[key])}
    heads = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
    assert new == {f"roi_heads.{head}.{kind}" for head in heads for kind in ("weight", "bias")}
    assert network.roi_heads.box_predictor.cls_score.out_features == 4
    Detection().check(config, network)  # its frozen layers are those of the checkpoint, so they are not random
    weights = OmegaConf.merge(config, {"init": None, "model": {"backbone": {"weights": "resnet10t.pth"}}})
    Detection().check(weights, network)
    weights.model.backbone.weights = None
    with pytest.raises(ValueError, match=r"model.frozen=true freezes the backbone's first layers"):
        Detection().check(weights, network)
