"""Untrusted checkpoints cannot run code or exhaust memory or disk."""

import struct
import zipfile

import pytest
import torch
from conftest import ROOT, write_pair
from omegaconf import OmegaConf
from untrusted_files import NAMED, small_config, stranger

from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint
from ccnet.models import import_checkpoint
from ccnet.models.backbone import TimmBackbone


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": "{backbone: {}, _target_: logging.FileHandler, filename: ran}"}, "instead of a mapping"),
        ({"dataset": "{train: {_target_: logging.FileHandler, filename: ran}}"}, "instead of a mapping"),
        ({"model": {"backbone": {}, "head": (NAMED,)}}, "only strings, numbers, lists and mappings"),
        ({"model": {"backbone": {}, "head": [[{"x": NAMED}]]}}, "names 'logging.FileHandler' in model"),
        ({"model": {"backbone": {}, "_args_": [NAMED]}}, "names 'logging.FileHandler' in model"),
        ({"model": {"_target_": ["logging.FileHandler"], "filename": "ran"}}, "names 'logging.FileHandler'"),
        (
            {"model": {"_target_": "ccnet.models.factory.create_model", "name": "fcn"}},
            "names 'ccnet.models.factory.create_model'",
        ),
        ({"model": {"_target_": "ccnet.models.segmentor.nn.Module"}}, "names 'ccnet.models.segmentor.nn.Module'"),
        ({"model": {"_target_": "ccnet.models.segmentor.Segmentor.forward"}}, "Segmentor.forward' in model"),
        ({"recipe": {"train_transform": {"_target_": "ccnet.check_data.main"}}}, "names 'ccnet.check_data.main'"),
        (
            {"recipe": {"x": {"_target_": "ccnet.data.transforms.v2.Compose"}}},
            "names 'ccnet.data.transforms.v2.Compose'",
        ),
        (
            {"logger": {"_target_": "ccnet.engine.drawing.scalar_file.ScalarFile", "path": "ran"}},
            "names 'ccnet.engine.drawing.scalar_file.ScalarFile'",
        ),
        ({"optimizer": {"_target_": "torch.optim.os.system", "command": "touch ran"}}, "names 'torch.optim.os.system'"),
        ({"model": {"backbone": {"name": "${oc.env:HOME}"}}}, "is not resolved"),
        ({"model": {"backbone": {"name": "${oc.decode:'1'}"}}}, "is not resolved"),
        ({"model": {3.5: NAMED}}, "which is neither a string nor a whole number"),
        ({"model": {3: NAMED}}, "which is not an allowed target there"),
    ],
)
def test_a_config_cannot_hide_a_forbidden_target(tmp_path, monkeypatch, config, message):
    """An earlier or simpler check would miss each of these cases; all are .pt, since JSON has fewer types."""
    monkeypatch.chdir(tmp_path)
    path = stranger(tmp_path / "last.pt", config)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        checkpoints.network(checkpoints.load(path))
    assert not (tmp_path / "ran").exists()


def test_a_deeply_nested_config_is_rejected(tmp_path):
    node = {}
    for _ in range(200):
        node = {"x": node}
    with pytest.raises(ValueError, match="nested more than 16 levels"):
        checkpoints.load(stranger(tmp_path / "last.pt", {"model": node}))
    header = b'{"__metadata__":{"ccnet":"' + b"[" * 100_000 + b'"}}'
    (tmp_path / "best.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="not a checkpoint of this project, or it is damaged"):
        checkpoints.load(tmp_path / "best.safetensors")


def test_an_archive_that_unpacks_to_more_than_its_size_is_rejected(tmp_path):
    stranger(tmp_path / "small.pt", {})
    with (
        zipfile.ZipFile(tmp_path / "small.pt") as given,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for entry in given.infolist():
            made.writestr(entry.filename, given.read(entry))
        made.writestr("archive/data/1", bytes(10**7))
    assert (tmp_path / "bomb.pt").stat().st_size < 10**5
    for read in (checkpoints.load, import_checkpoint):
        with pytest.raises(ValueError, match="it would unpack to"):
            read(tmp_path / "bomb.pt")


def test_a_network_larger_than_its_weights_is_not_built(tmp_path):
    """One needs a terabyte; the other 5 GB, which the system would grant, only to kill the process later."""
    saved = Checkpoint({"w": torch.ones(2)}, small_config(channels=10**10), list("abcd"), [[0, 0, 0]] * 4, 1, {})
    with pytest.raises(ValueError, match=r"cannot be built from its config"):
        checkpoints.network(saved)
    saved.config = small_config(channels=300_000)  # times 512 channels and 9 taps: 5 GB
    with pytest.raises(ValueError, match="a network far larger than its weights"):
        checkpoints.network(saved)
    view = torch.zeros(1).expand(10**12)
    torch.save({"state_dict": {"decode_head.conv_seg.weight": view}}, tmp_path / "view.pth")
    with pytest.raises(ValueError, match=r"decode_head\.conv_seg\.weight is not a complete tensor"):
        import_checkpoint(tmp_path / "view.pth")


@pytest.mark.slow
def test_every_entry_point_rejects_a_malicious_checkpoint(run_entry, tmp_path):
    evil = stranger(tmp_path / "last.pt", {"model": {"backbone": {}, "head": NAMED}})
    write_pair(tmp_path / "in.png", tmp_path / "x.png", classes=2)
    for command in (
        ["evaluate.py", f"checkpoint={evil}"],
        ["predict.py", f"checkpoint={evil}", f"input={tmp_path}/in.png"],
        ["train.py", f"init={evil}", "device=cpu"],
        ["train.py", f"resume={tmp_path}"],
        ["export.py", f"checkpoint={evil}"],
    ):
        done = run_entry(*command, ok=False)
        assert "names 'logging.FileHandler' in model" in done.stdout + done.stderr, command
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


def test_backbone_weights_with_other_objects_than_tensors_are_rejected_and_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for content in ({"state_dict": Evil()}, {"conv1.weight": 3}, [1, 2]):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="not a state dict that can be read safely"):
            TimmBackbone("resnet10t", weights=tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


def test_no_resolver_evaluates_code():
    from ccnet import train  # noqa: F401, including everything it imports

    assert not OmegaConf.has_resolver("eval")
    paths = [path for folder in ("engine", "data", "models", "losses", "kernels") for path in
             (ROOT / folder).rglob("*.py")]  # fmt: skip
    registering = {path.name for path in paths if "register_new_resolver" in path.read_text()}
    assert registering == {
        "secret_values.py",  # only notes what oc.env reads
        "entry_point.py",  # only prints a configuration, for --help
    }


def test_a_pickled_object_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        checkpoints.load(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": {"_target_": "os.system", "command": "true"}}, r"names 'os\.system' in model"),
        (
            {"model": {"head": [{"_target_": "ccnet.models.backbone.torch.load"}]}},
            r"names 'ccnet\.models\.backbone\.torch\.load'",
        ),
        (
            {"dataset": {"val": {"_target_": "ccnet.models.factory.build"}}},
            r"'ccnet\.models\.factory\.build' in dataset",
        ),
        ({"extra": {"_target_": "ccnet.models.factory.build"}}, "in extra"),
        ({"model": {"_target_": "ccnet.models.nothing.There"}}, "in model"),
        ({"logger": {"name": "${oc.env:HOME}"}}, r"logger contains '\$\{oc\.env:HOME\}'"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_untrusted_config_cannot_refer_to_other_code(tmp_path, config, message, suffix):
    path = tmp_path / f"last{suffix}"
    checkpoints.save(Checkpoint({"w": torch.ones(2)}, config, ["a"], [[0, 0, 0]], 1, {}), path)
    with pytest.raises(ValueError, match=message):
        checkpoints.load(path)
