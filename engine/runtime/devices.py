"""Choose a run's device and seed its random number generators."""

import random

import numpy as np
import torch

from .distributed import rank
from .launchers import parallel_worker


def choose_device(name: str) -> torch.device:
    """Return the torch device for `name`.

    Args:
        name: the name of a torch device, or "auto" for a GPU if there is one and the CPU otherwise. The runs of a
            parallel sweep are distributed over the GPUs.

    Raises:
        ValueError: torch does not recognise the name, or finds no GPU although one is requested.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        worker = parallel_worker()
        if name == "cuda" and worker is not None:
            name = f"cuda:{worker % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"torch does not recognise device={name}: use auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no GPU: set device=cpu, or check the driver")
    return device


def seed_everything(seed: int) -> None:
    """Seed every random number generator that weight initialisation and dropout may use."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_dropout(seed: int) -> None:
    """Give each process its own dropout seed; call this after all of them have built the same network."""
    if rank():
        torch.manual_seed(seed + rank())
