"""Write checkpoints, whole or not at all, with checksums."""

import json
import os
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..runtime.atomic_files import replacing
from ..runtime.lost_workers import lost_worker
from .record import Checkpoint

HEADER, CHECKSUM = "ccnet", "crc32"  # entries of a .safetensors file's metadata


def save(checkpoint: Checkpoint, path: Path, *, before: Path | None = None) -> None:
    """Write ``path`` atomically: a run's weights as .safetensors, its state as .pt.

    Args:
        checkpoint: what to write; .safetensors leaves out ``training``.
        path: the file. A run that is killed while writing keeps the file that it had.
        before: where an existing file is moved; None to replace it.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    write = _write_weights if path.suffix == ".safetensors" else _write_state
    with replacing(path) as unfinished:
        try:
            write(checkpoint, unfinished)
            with open(unfinished, "rb+") as file:
                os.fsync(file.fileno())
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
            if lost_worker(error):
                raise
            raise OSError(
                f"{path} could not be written, is the disk full? The checkpoint before is as it was: make space, and "
                f"resume=auto goes on from there. {error}"
            ) from error
        if before and path.exists():
            os.replace(path, before)


def checksum(header: str, weights: dict[str, Tensor]) -> str:
    """Return the CRC-32 of a .safetensors file's header and tensors, whatever their order in the file."""
    total = zlib.crc32(header.encode())
    for key in sorted(weights):
        total = zlib.crc32(key.encode(), total)
        total = zlib.crc32(weights[key].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _write_weights(checkpoint: Checkpoint, path: Path) -> None:
    left_out = ("weights", "training", "source")
    header = json.dumps({key: value for key, value in vars(checkpoint).items() if key not in left_out})
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in checkpoint.weights.items()}
    save_file(weights, path, metadata={HEADER: header, CHECKSUM: checksum(header, weights)})


def _write_state(checkpoint: Checkpoint, path: Path) -> None:
    # torch writes a CRC-32 for every tensor.
    torch.save({key: value for key, value in vars(checkpoint).items() if key != "source"}, path)
