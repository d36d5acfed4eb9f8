"""Runs that predate the package `ccnet` can be resumed."""

import hashlib
import json

import pytest
import torch
from conftest import ROOT, TINY
from hydra import compose, initialize_config_dir

from ccnet import train as training
from ccnet.engine import checkpoints
from ccnet.engine.guards import plain
from ccnet.engine.guards.former_names import former_names

# Settings that may change when a run is resumed, and that its fingerprint ignores.
FREE = {
    "resume", "device", "num_workers", "log_every", "save_every", "logger", "skip_broken", "skip_nonfinite",
    "collective_timeout", "allow_env",
}  # fmt: skip


def composed(*overrides):
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=[*TINY, *overrides])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a finished run of four iterations."""
    folder = tmp_path_factory.mktemp("whole")
    training.train(composed(), folder)
    return folder


@pytest.fixture
def former(whole, tmp_path):
    """Return the folder of the same run as an earlier version would have left it after two iterations."""
    saved = checkpoints.load(whole / "previous.pt")
    config = {key: value for key, value in former_names(plain(composed())).items() if key not in FREE}
    saved.config = former_names(saved.config)
    saved.training["identity"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    assert "ccnet" not in json.dumps([config, {key: saved.config[key] for key in ("model", "dataset", "loss", "task")}])
    folder = tmp_path / "runs" / "former"
    folder.mkdir(parents=True)
    checkpoints.save(saved, folder / "last.pt")
    return folder


@pytest.mark.parametrize("resume", ["auto", "folder"])
def test_an_older_run_resumes_to_the_same_result(whole, former, tmp_path, resume):
    config = composed(f"resume={former if resume == 'folder' else 'auto'}")
    folder, saved = checkpoints.find_start(config, tmp_path / "runs" / "new")
    assert (folder, saved.iteration) == (former, 2)
    training.train(checkpoints.continued(config, saved), folder, saved)
    one, two = (checkpoints.load(path / "last.pt") for path in (whole, former))
    assert (one.iteration, repr(one.scores)) == (two.iteration, repr(two.scores))
    assert all(torch.equal(values, two.weights[name]) for name, values in one.weights.items())
