"""Each kind of checkpoint is read by opening its file once and building one network."""

import builtins
import json

import pytest
import torch
from safetensors.torch import save_file
from untrusted_files import small_config

from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint, networks
from ccnet.models import tensor_files
from ccnet.models.factory import build
from ccnet.models.published import importing

CLASSES, PALETTE = list("abcd"), [[index, 0, 255] for index in range(4)]


@pytest.fixture(scope="module")
def made():
    """Return a checkpoint of a small network."""
    torch.manual_seed(0)
    config = small_config()
    return Checkpoint(build(config["model"]).state_dict(), config, CLASSES, PALETTE, 7, {"miou": 0.5})


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors"])
def test_the_files_of_a_run_are_opened_once_and_restore_what_was_saved(made, tmp_path, monkeypatch, name):
    checkpoints.save(made, tmp_path / name)
    opened = []

    def counting(function):
        def count(path, *arguments, **named):
            if str(path) == str(tmp_path / name):
                opened.append(path)
            return function(path, *arguments, **named)

        return count

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", counting(open))
        patched.setattr(tensor_files, "safe_open", counting(tensor_files.safe_open))
        found = checkpoints.load(tmp_path / name)
    assert len(opened) == 1
    assert (found.config, found.classes, found.palette) == (made.config, made.classes, made.palette)
    assert (found.iteration, found.scores, found.source) == (7, {"miou": 0.5}, tmp_path / name)
    assert all(torch.equal(tensor, made.weights[key]) for key, tensor in found.weights.items())


def test_a_published_network_is_built_once(tmp_path, monkeypatch):
    from published_states import mmseg_state

    torch.save({"state_dict": mmseg_state("fcn")}, tmp_path / "published.pth")
    built = []

    def counting(config, **named):
        built.append(torch.get_default_device().type)
        return build(config, **named)

    for module in (importing, networks):
        monkeypatch.setattr(module, "build", counting)
    found = checkpoints.load(tmp_path / "published.pth")
    assert built == ["meta"]  # only the names and shapes of its tensors
    assert checkpoints.network(found)(torch.rand(1, 3, 33, 33))["out"].shape == (1, 3, 33, 33)
    assert built == ["meta", "cpu"]
    (tmp_path / "published.pth").unlink()


def test_another_file_of_a_run_is_not_taken_for_a_checkpoint(tmp_path):
    (tmp_path / "val.csv").write_text("iteration")
    with pytest.raises(ValueError, match=r"val\.csv is not a checkpoint, as its name .*: pass the folder of a run"):
        checkpoints.find(tmp_path / "val.csv")
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*/val\.safetensors or .*/val\.pt"):
        checkpoints.find(tmp_path / "val")


def test_a_run_without_a_validation_is_told_apart_from_a_folder_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*/best\.safetensors or .*: a run writes best\.saf"):
        checkpoints.find(tmp_path)
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"after its first validation; .*/last\.pt holds the newest weights"):
        checkpoints.find(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"bset\.pt: a run writes best\.safetensors and last\.pt"):
        checkpoints.find(tmp_path / "bset")


def test_a_checkpoint_with_fields_of_the_wrong_type_is_rejected(made, tmp_path):
    fields = {key: value for key, value in vars(made).items() if key not in ("weights", "training", "source")}
    for wrong, message in (
        ({"classes": [1, 2]}, "invalid classes"),
        ({"palette": [3], "iteration": -1}, "invalid palette and iteration"),
        ({"palette": [[0, 0, 256]] * 4}, "invalid palette"),
        ({"palette": [[0, 0]] * 4}, "invalid palette"),
        ({"palette": PALETTE[1:]}, "it names 4 classes but has 3 colours"),
        ({"scores": None}, "invalid scores"),
        ({"further": 1}, "unexpected keyword argument 'further'"),
    ):
        header = json.dumps(fields | wrong)
        save_file({"w": torch.ones(1)}, tmp_path / "best.safetensors", metadata={"ccnet": header})
        with pytest.raises(ValueError, match=r"best\.safetensors is not a checkpoint .*" + message):
            checkpoints.load(tmp_path / "best.safetensors")
