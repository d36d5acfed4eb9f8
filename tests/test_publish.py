"""publish.py, the packaged network as the default of predict.py, and torch.hub."""

import json
import re
import shutil
import tomllib

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, composed, entry_runner, run_python
from PIL import Image
from safetensors.torch import load_file

import ccnet
from ccnet import train as training
from ccnet.engine import runtime
from ccnet.engine.checkpoints import pretrained

pytestmark = pytest.mark.slow

HERE = ("device=cpu", "num_workers=0")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    training.train(composed("recipe.max_iters=2"), folder)
    return folder


@pytest.fixture(scope="module")
def published(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed") / pretrained.DEFAULT
    with pytest.MonkeyPatch.context() as patched:
        run = entry_runner(folder.parent, patched)
        run("publish.py", f"checkpoint={run_folder}", f"output={folder}", *HERE, "machine=one")
    return folder


@pytest.fixture
def packaged(published, monkeypatch):
    """Return the folder of the published run, which is the network that comes with the package."""
    monkeypatch.setattr(pretrained, "_FOLDER", published.parent)
    return published


def test_a_run_is_published_with_its_records_and_the_scores_of_the_stored_weights(packaged, run_entry, tmp_path):
    assert torch.float16 in {tensor.dtype for tensor in load_file(packaged / "model.safetensors").values()}
    card = (packaged / "README.md").read_text()
    assert "Percent on the 3 images of the val split, protocol Whole." in card
    assert "| iterations | 2 (0.5 epochs of 8 images) |" in card and "| machine | one |" in card
    assert f"| commit of the code | {runtime.provenance(torch.device('cpu'))['commit']} |" in card
    run_entry("evaluate.py", f"checkpoint={pretrained.DEFAULT}", *HERE)
    (scores,) = tmp_path.glob("outputs/evaluate/*/model_val_whole.json")  # not in the folder of the package
    stated = json.loads((packaged / "config.json").read_text())["scores"]
    assert json.loads(scores.read_text())["miou"] == stated["miou"]
    assert "Large tensors are stored in float16. With the run's float32 weights, mIoU is" in card
    again = tmp_path / "again"
    run_entry("publish.py", f"checkpoint={packaged}", f"output={again}", *HERE)
    assert "Large tensors are stored in float16.\n" in (again / "README.md").read_text()  # the run's score is unknown
    first, second = (load_file(folder / "model.safetensors") for folder in (packaged, again))
    assert first.keys() == second.keys() and all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_predict_without_a_checkpoint_uses_the_packaged_network(packaged, run_entry, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (70, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    done = run_entry("predict.py", f"input={tmp_path / 'photo.png'}", "device=cpu")
    assert f"checkpoint is not set: using {pretrained.DEFAULT}, whose classes are background, red beacon" in done.stdout
    labels = ccnet.from_pretrained(pretrained.DEFAULT, device="cpu").predict(pixels).labels
    assert np.array_equal(np.array(Image.open(tmp_path / "predictions" / "photo.png")), labels)


def test_a_run_starts_from_the_packaged_network(packaged, run_entry, tmp_path):
    options = [option for option in TINY if not option.startswith("recipe.head")]
    run_entry("train.py", *options, "recipe.max_iters=1", f"init={pretrained.DEFAULT}")
    (config,) = tmp_path.glob("outputs/*/*/config.yaml")
    assert f"init: {pretrained.DEFAULT}\n" in config.read_text()  # the name, which no folder holds


def test_a_rounding_that_costs_too_much_is_refused(run_folder, run_entry, tmp_path):
    done = run_entry(
        "publish.py", f"checkpoint={run_folder}", f"output={tmp_path / 'out'}", *HERE,
        "most_lost=-1", ok=False,
    )  # fmt: skip
    assert "more than most_lost=-1: keep float32 with half=false" in done.stderr
    assert not (tmp_path / "out").exists()


def test_publishing_overwrites_neither_a_run_nor_the_files_of_something_else(run_folder, run_entry, tmp_path):
    done = run_entry("publish.py", f"checkpoint={run_folder}", f"output={run_folder}", *HERE, ok=False)
    assert f"error: output={run_folder} holds a run" in done.stderr
    (tmp_path / "README.md").write_text("mine")
    done = run_entry("publish.py", f"checkpoint={run_folder}", f"output={tmp_path}", *HERE, ok=False)
    assert f"error: {tmp_path}/README.md belongs to something else and would be overwritten" in done.stderr
    assert not (run_folder / "model.safetensors").exists() and (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").unlink()
    with runtime.FolderLock(tmp_path):
        done = run_entry("publish.py", f"checkpoint={run_folder}", f"output={tmp_path}", *HERE, ok=False)
    assert f"error: {tmp_path} is in use by process" in done.stderr
    (tmp_path / "config.json").write_text('{"architectures": ["Other"]}')  # a network of another project
    (tmp_path / "model.safetensors").write_text("theirs")
    done = run_entry("publish.py", f"checkpoint={run_folder}", f"output={tmp_path}", *HERE, ok=False)
    assert f"error: {tmp_path}/config.json belongs to something else and would be overwritten" in done.stderr
    assert (tmp_path / "model.safetensors").read_text() == "theirs"


def test_nothing_is_published_if_the_record_of_the_run_is_damaged(run_folder, run_entry, tmp_path):
    copy = shutil.copytree(run_folder, tmp_path / "run")
    (copy / "result.json").write_text("")  # as after a power cut
    done = run_entry("publish.py", f"checkpoint={copy}", f"output={tmp_path / 'out'}", *HERE, ok=False)
    assert f"error: {copy}/result.json, from which" in done.stderr and "set commit= and machine=" in done.stderr
    assert not (tmp_path / "out").exists()


def test_predict_says_that_the_packaged_network_is_missing(run_entry, monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "_FOLDER", tmp_path)
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    done = run_entry("predict.py", f"input={tmp_path / 'photo.png'}", ok=False)
    assert f"error: the pretrained network {pretrained.DEFAULT} is missing from this installation" in done.stderr


FROM_HUB = """
import sys, torch
repository, installed, root = sys.argv[1:]
sys.path.insert(0, repository)
import hubconf
listed = [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and name[0] != "_"]
assert listed == ["ccnet_mobilenetv2_camvid"], listed
assert hubconf._ccnet().__file__ == root + "/__init__.py", hubconf._ccnet().__file__
from ccnet.engine.checkpoints import pretrained
pretrained._FOLDER = __import__("pathlib").Path(installed)
network = torch.hub.load(repository, "ccnet_mobilenetv2_camvid", source="local", device="cpu")
print(network.classes[0])
print(*sorted({name.partition(".")[0] for name in sys.modules} - {*hubconf.dependencies}))
"""


def test_torch_hub_loads_the_packaged_network(packaged, tmp_path):
    """The folder of a download has another name, and ccnet need not be installed, or may be in another version."""
    repository = tmp_path / "owner_repository_main"
    repository.symlink_to(ROOT)
    printed = run_python("-c", FROM_HUB, repository, packaged.parent, ROOT, cwd=tmp_path, PYTHONPATH="")
    assert printed.startswith("background\n")
    # torch.hub names the dependencies that are not installed; any other module would end in a traceback.
    unlisted = set(printed.split()) - {"wandb"}  # which timm imports if it is there
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in required}
    assert not unlisted & (names | {"hydra", "PIL"})
    assert set(pretrained.PACKAGED) == {pretrained.DEFAULT}
