"""Choose the device of a run, and seed its random generators."""

import random

import numpy as np
import torch

from .distributed import rank
from .launchers import parallel_worker


def choose_device(name: str) -> torch.device:
    """Return the device called `name`.

    Args:
        name: a name of torch, or "auto": a GPU if there is one, else the CPU. The runs of a parallel sweep take turns
            with the GPUs.

    Raises:
        ValueError: torch does not know the device, or finds no GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        worker = parallel_worker()
        if name == "cuda" and worker is not None:
            name = f"cuda:{worker % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={name} is unknown to torch: give auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no GPU: give device=cpu, or check the driver")
    return device


def seed_everything(seed: int) -> None:
    """Seed every generator that initial weights and dropout may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_dropout(seed: int) -> None:
    """Let dropout draw differently in each process, once all of them have built the same network."""
    if rank():
        torch.manual_seed(seed + rank())
