"""The device that a run uses, and the seeds of its random generators."""

import random

import numpy as np
import torch

from .launchers import parallel_worker


def choose_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is the GPU if there is one, and one for each run of a parallel sweep."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        worker = parallel_worker()
        if name == "cuda" and worker is not None:
            name = f"cuda:{worker % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={name} is none that torch knows: give auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no GPU: give device=cpu, or check the driver")
    return device


def seed_everything(seed: int) -> None:
    """Seed every generator that a network's initial weights and dropout may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
