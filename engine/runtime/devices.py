"""Choose a run's device and seed its random number generators."""

import random

import numpy as np
import torch

from .launchers import parallel_worker


def choose_device(name: str) -> torch.device:
    """Return the torch device for `name`.

    Args:
        name: the name of a torch device, or "auto" for a GPU if there is one and the CPU otherwise. The runs of a
            parallel sweep are distributed over the GPUs.

    Raises:
        ValueError: torch does not recognise the name, or this machine has no such device.
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
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"device={name}, but torch finds {torch.cuda.device_count()} GPUs, numbered from 0")
    accelerator = torch.accelerator.current_accelerator()
    if device.type not in ("cpu", "cuda") and (accelerator is None or device.type != accelerator.type):
        raise ValueError(f"device={name}, but this machine has no such device: use auto, cpu, cuda or cuda:1")
    return device


def seed_everything(seed: int) -> None:
    """Seed every random number generator that weight initialisation and dropout may use."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
