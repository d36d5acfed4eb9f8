"""Checkpoints are written atomically."""

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
