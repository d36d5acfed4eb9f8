"""Networks in folders: config.json, model.safetensors and a model card; the packaged one; Hugging Face repositories."""

import ast
import json
import math
import socket
import warnings
from dataclasses import replace
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import PATIENCE, forkserver
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file
from stand_in import stand_in
from untrusted_files import NAMED

import ccnet
from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import folders, pretrained
from ccnet.engine.checkpoints.model_card import model_card
from ccnet.engine.drawing.tables import Table
from ccnet.engine.guards import plain
from ccnet.engine.prediction import TrainedNetwork
from ccnet.models.factory import compose_conf

NAME = pretrained.DEFAULT


@pytest.fixture(scope="module")
def network():
    return TrainedNetwork(stand_in(), device="cpu")


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "street"
    network.save_pretrained(path)
    return path


@pytest.fixture
def changed(folder, tmp_path):
    """Return a function that copies the folder with another config.json."""

    def copy(**changes):
        content = json.loads((folder / "config.json").read_text()) | changes
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        (tmp_path / "config.json").write_text(json.dumps(content))
        return tmp_path

    return copy


@pytest.mark.parametrize("failing", ["write_json", "write_safetensors"])
def test_weights_are_never_without_their_configuration(network, tmp_path, monkeypatch, failing):
    """publish.py would refuse the folder as one of another project, or the old configuration would describe them."""
    monkeypatch.setattr(folders, failing, Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        folders.write_folder(network._saved, tmp_path)
    assert not any((tmp_path / name).exists() for name in ("config.json", "model.safetensors"))


IMAGE = np.arange(3 * 40 * 56, dtype=np.uint32).reshape(40, 56, 3).astype(np.uint8)


@torch.no_grad()
def logits_of(network):
    return network(torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 255)["out"].numpy()


def save_logits(folder, path):
    np.save(path, logits_of(ccnet.from_pretrained(folder, device="cpu")))


@pytest.mark.slow
def test_a_round_trip_through_another_process_keeps_every_bit(network, folder, tmp_path):
    other = forkserver().Process(target=save_logits, args=(folder, tmp_path / "logits.npy"))
    other.start()
    other.join(PATIENCE)
    assert np.array_equal(np.load(tmp_path / "logits.npy"), logits_of(network))


def test_a_folder_holds_the_network_and_nothing_of_the_machine(network, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "/data" not in (folder / "config.json").read_text() + (folder / "README.md").read_text()
    again = checkpoints.load(checkpoints.find(folder))
    assert (again.classes, again.palette, again.iteration) == (network.classes, network.palette, 4000)
    assert math.isnan(again.scores["class_iou"][-1])
    assert "NaN" not in (folder / "config.json").read_text()  # which other JSON parsers reject
    assert not {"logger", "num_workers", "device"} & again.config.keys()


def test_a_card_says_what_the_network_was_trained_on_and_how_well_it_does(folder):
    card = (folder / "README.md").read_text()
    assert huggingface_hub.ModelCard(card).data.license == "other"
    assert 'ccnet.from_pretrained("street")  # from Hugging Face: "OWNER/street"\n' in card
    data = " ".join(card.split())
    assert "Trained on the training split of CamVid" in data and "research use only" in data
    assert "| recurrence R | 2 |" in card and "| backbone | resnet10t |" in card
    assert "frames of a clip" not in card
    assert "| Building | 60.00 | 60.00 |" in card and "| mean | 60.00 | 70.00 |" in card


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (["model=mask_rcnn", "dataset=coco"], ["RecurrentCrissCrossAttention", "2", "learned"]),
        (["model=mask_rcnn", "dataset=coco", "model/context=nonlocal"], ["NonLocal", None, "learned"]),
        (["model=ce2p_rcca", "dataset=lip"], ["CrissCrossAttention", "2", "learned"]),
        (["model=ce2p", "dataset=lip"], ["PyramidFeatures", None, None]),
    ],
    ids=str,
)
def test_a_card_names_the_context_module_of_every_network(network, options, rows):
    config = plain(compose_conf([*options, "num_classes=3", "dataset.root=DIR"], "config"))
    text = model_card(replace(network._saved, config=config), "street", record={})
    for name, value in zip(("context module", "recurrence R", "residual weight gamma"), rows, strict=True):
        assert f"| {name} | {value} |" in text if value else f"| {name} |" not in text


def test_a_card_names_the_framework_of_the_training(network):
    with_torch, with_jax = (model_card(network._saved, "street", record=record) for record in ({}, {"jax": "0.10.2"}))
    assert "| JAX | 0.10.2 |" in with_jax and "JAX" not in with_torch


def test_a_card_claims_coco_only_for_its_classes(network):
    config = plain(compose_conf(["dataset=coco", "num_classes=3", "dataset.root=DIR"], "config"))
    other, cocos = [*map(str, range(80))], ["person", *map(str, range(78)), "toothbrush"]
    for classes, coco in ((["screw", "nut"], False), (other, False), (cocos, True)):
        text = model_card(replace(network._saved, config=config, classes=classes), "street", record={})
        assert ("Trained on the split train2017 of COCO" in text) == coco
        assert ("not one of the public data sets" in text) != coco


def test_a_card_describes_the_task_and_the_images_of_its_network(network):
    saved = network._saved
    text = model_card(saved, "street", record={})
    assert "assigns each pixel of an RGB image one of 11 classes: Sky, " in text
    assert 'labels, probabilities, overlay = network.predict("photo.jpg")\n```\n\n## Data' in text
    backbone = saved.config["model"]["backbone"] | {"in_channels": 5}
    task = {"_target_": "ccnet.engine.evaluation.tasks.detection.Detection"}
    config = saved.config | {"model": saved.config["model"] | {"backbone": backbone}, "task": task}
    config["dataset"] = config["dataset"] | {"value_range": [0, 4095], "frames": 5}
    text = model_card(replace(saved, config=config), "street", record={})
    assert "| frames of a clip | 5 |" in text
    assert 'predict("image.npy")\n```\n\nIt accepts NumPy arrays of shape (H, W, 5), and TIFFs with 5 bands\n' in text
    assert "\n\nIn images of more than 8 bits, 0 is black and 4095 is white.\n\n## Data" in text
    assert "finds objects of 11 classes in an image of 5 channels: Sky, " in text
    assert "labels, scores, boxes, masks, overlay = network.predict" in text and "semantic" not in text.split("#")[0]


def test_a_card_separates_class_names_with_commas(network):
    classes = ["road, street", 'a "sign"', *network.classes[2:]]
    assert '11 classes: "road, street", "a \\"sign\\"", "Pole", ' in model_card(
        replace(network._saved, classes=classes), "street", record={}
    )


def test_a_card_says_if_its_scores_are_of_images_that_the_network_was_trained_on():
    table = Table(("class", "IoU"), [("Sky", 60.0)])
    cards = {}
    for split in ("train", "trainval", "val"):
        saved = stand_in("fcn", f"dataset.train.split={split}")
        cards[split] = model_card(saved, "street", scores=table, scored_on="Percent on val.", record={})
    assert "Trained on the training split of CamVid: " in cards["train"]
    assert "\n\nPercent on val.\n\n|" in cards["train"]
    for split in ("trainval", "val"):
        assert f"Trained on the split {split} of CamVid: " in cards[split]
        assert "Percent on val. The network was trained on these images too: expect lower scores" in cards[split]


def test_the_example_in_a_card_is_python_whatever_the_folder_is_called(network):
    name = 'street "two" \\ é'
    example = model_card(network._saved, name, record={}).partition("```python\n")[2].partition("```")[0]
    assert name in [node.value for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Constant)]


def test_a_card_that_someone_has_edited_is_kept_with_a_warning(network, tmp_path):
    network.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.save_pretrained(tmp_path)  # the card is of the same network
    (tmp_path / "README.md").write_text("mine")
    with pytest.warns(UserWarning, match=r"README.md is kept, although it may describe another network: delete it"):
        network.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_folder_of_a_run_keeps_its_meaning(network, tmp_path):
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(ValueError, match="holds a run, whose folder would no longer stand for its best weights"):
        network.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"model": {"backbone": NAMED}}}, "names 'logging.FileHandler' in model"),
        ({"config": {"model": {"backbone": {"name": "${oc.env:HOME}"}}}}, "is not resolved"),
        ({"weights": {}}, "must have exactly the keys classes, config, iteration, palette, scores"),
        ({"palette": [[0, 0, 0]]}, "names 11 classes but has 1 colours"),
        ({"classes": ["a"], "palette": [[0, 0, 0]]}, "has 11 classes, but it names 1"),
    ],
)
def test_a_malicious_config_is_refused(changed, monkeypatch, tmp_path, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        ccnet.from_pretrained(changed(**changes))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["[1]", "{", '"config"', "\xff"])
def test_a_damaged_config_is_refused(changed, text):
    folder = changed()
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="not a checkpoint of this project, or it is damaged"):
        ccnet.from_pretrained(folder)


def test_damaged_weights_and_those_without_a_config_are_refused(changed):
    path = changed() / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its checksum"):
        ccnet.from_pretrained(path.parent)
    path.with_name("config.json").unlink()
    assert not folders.holds_network(path.parent)
    with pytest.raises(ValueError, match="the configuration that builds it is missing"):
        ccnet.from_pretrained(path.parent)


def test_half_precision_rounds_large_tensors_only(tmp_path):
    saved = stand_in()
    saved.weights = checkpoints.half_precision(saved.weights)
    folders.write_folder(saved, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["mean"].dtype == stored["head.context.query_conv.bias"].dtype == torch.float32
    assert stored["head.reduce.0.weight"].dtype == torch.float16
    loaded = ccnet.from_pretrained(tmp_path, device="cpu")
    assert {tensor.dtype for tensor in loaded.module.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="exceed the range of float16"):
        checkpoints.half_precision({"w": torch.full((40, 40), 1e6)})
    indices = torch.arange(2500).view(50, 50)  # float16 is exact only up to 2048
    assert checkpoints.half_precision({"indices": indices})["indices"] is indices


def test_the_packaged_name_never_touches_the_internet(folder, monkeypatch, tmp_path):
    def no_network(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(pretrained, "_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"the pretrained network {NAME} is missing from this installation"):
        ccnet.from_pretrained(NAME)
    (tmp_path / NAME).symlink_to(folder)
    network = ccnet.from_pretrained(NAME, device="cpu")
    assert isinstance(network, TrainedNetwork) and len(network.classes) == 11
    assert checkpoints.find(NAME) == tmp_path / NAME / "model.safetensors"


def test_a_repository_is_downloaded_as_two_files(folder, monkeypatch):
    asked = {}

    def snapshot_download(repository, **options):
        asked.update(options, repository=repository)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    network = ccnet.from_pretrained("someone/street", device="cpu", revision="v1")
    assert network.classes[0] == "Sky"
    assert asked == {
        "repository": "someone/street", "revision": "v1", "allow_patterns": ["config.json", "model.safetensors"],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"^recurrence would have no effect"):  # its config.json determines R
        ccnet.from_pretrained("someone/street", device="cpu", recurrence=1)


def test_a_missing_network_is_reported(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no pretrained network street: pass one of ccnet_mobilenet"):
        ccnet.from_pretrained("street")

    def absent(*_, **__):
        response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
        raise RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(FileNotFoundError, match="neither a folder someone/street nor a Hugging Face repository"):
        ccnet.from_pretrained("someone/street")


def test_push_to_hub_uploads_the_folder(network, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path, repo_id, **_):
            sent[repo_id] = sorted(path.name for path in folder_path.iterdir())
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert network.push_to_hub("someone/street") == "url"
    assert sent == {"someone/street": ["README.md", "config.json", "model.safetensors"]}
