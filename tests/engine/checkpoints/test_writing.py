"""Checkpoints are written atomically."""

import errno

import pytest
import torch
from safetensors import SafetensorError
from untrusted_files import small_config

from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint, writing
from ccnet.models import tensor_files


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


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EIO, "Input/output error"), "could not be written. There is no .*Input/output error"),
        (RuntimeError("[enforce fail at inline_container.cc:664]"), "the disk may be full.*enforce fail"),  # torch's
    ],
)
def test_only_an_error_that_may_mean_a_full_disk_is_called_one(tmp_path, monkeypatch, error, message):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(writing.torch, "save", fails)
    with pytest.raises(OSError, match=message):
        checkpoints.save(Checkpoint({"w": torch.ones(2)}, {}, ["a"], [[0, 0, 0]], 1, {}), tmp_path / "last.pt")


@pytest.mark.parametrize(
    "write", [checkpoints.write_folder, lambda saved, to: checkpoints.save(saved, to / "a.safetensors")]
)
def test_a_full_disk_is_an_oserror_whichever_library_writes(tmp_path, monkeypatch, write):
    """Else publish.py, for example, would show a traceback."""

    def full_disk(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_files, "save_file", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: .*(model|a)\.safetensors"):
        write(Checkpoint({"w": torch.ones(2)}, small_config(), ["a"], [[0, 0, 0]], 1, {}), tmp_path)
    assert [*tmp_path.iterdir()] == []
