"""Checkpoints are written atomically."""

import errno

import pytest
import torch

from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint, writing


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    made = Checkpoint({"w": torch.ones(2)}, {}, ["a"], [[0, 0, 0]], 1, {})
    checkpoints.save(made, path)

    def full_disk(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full_disk)
    made.iteration = 2
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(made, path)
    assert checkpoints.load(path).iteration == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_before_the_first_checkpoint_does_not_promise_one(tmp_path, monkeypatch):
    made = Checkpoint({"w": torch.ones(2)}, {}, ["a"], [[0, 0, 0]], 1, {})

    def full_disk(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full_disk)
    with pytest.raises(OSError, match="There is no earlier checkpoint: free some disk space and start again"):
        checkpoints.save(made, tmp_path / "last.pt")
    (tmp_path / "last.pt").touch()
    with pytest.raises(OSError, match="previous checkpoint is intact: free some disk space and continue from it"):
        checkpoints.save(made, tmp_path / "best.safetensors")
