"""Write checkpoints atomically, with checksums."""

import errno
import json
import os
from pathlib import Path

import torch

from ...models.checksums import HEADER
from ...models.tensor_files import write_safetensors
from ..runtime.atomic_files import replacing
from ..runtime.lost_workers import lost_worker
from ..runtime.run_folder import LAST, PREVIOUS
from .record import Checkpoint


def save(checkpoint: Checkpoint, path: Path, *, before: Path | None = None) -> None:
    """Write a checkpoint atomically: a run's weights as .safetensors, its full state as .pt.

    Args:
        checkpoint: what to write; .safetensors files omit ``training``.
        path: the file; if the run is killed while writing, the existing file is kept.
        before: the path to move an existing file to; None to overwrite it.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    write = _write_weights if path.suffix == ".safetensors" else _write_state
    try:
        with replacing(path) as unfinished:
            write(checkpoint, unfinished)
            with open(unfinished, "rb+") as file:
                os.fsync(file.fileno())
            if before and path.exists():
                os.replace(path, before)
    except (OSError, RuntimeError) as error:  # torch raises an error of its own
        if lost_worker(error):
            raise
        raise _explained(error, path) from error


def _explained(error: Exception, path: Path) -> OSError:
    """Convert a failure to write a checkpoint to an error that says what to do."""
    if not path.parent.is_dir():
        return FileNotFoundError(f"{path} could not be written: the folder of the run has been moved or removed")
    intact = any((path.parent / name).exists() for name in (path.name, LAST, PREVIOUS))
    kept = "The previous checkpoint is intact" if intact else "There is no earlier checkpoint"
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OSError(f"{path} could not be written. {kept}. {error}")
    then = "continue from it with resume=auto" if intact else "start again"
    return OSError(
        f"{path} could not be written; the disk may be full. {kept}: free some disk space and {then}. {error}"
    )


def _write_weights(checkpoint: Checkpoint, path: Path) -> None:
    left_out = ("weights", "training", "source")
    header = json.dumps({key: value for key, value in vars(checkpoint).items() if key not in left_out})
    write_safetensors(path, checkpoint.weights, {HEADER: header})


def _write_state(checkpoint: Checkpoint, path: Path) -> None:
    # torch.save stores a CRC-32 for every tensor.
    torch.save({key: value for key, value in vars(checkpoint).items() if key != "source"}, path)
