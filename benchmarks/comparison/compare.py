"""Compare the implementations of the operator on one shape, in torch or in JAX."""

import torch
from omegaconf import DictConfig

from .rows import TOLERANCE


def compare_operators(config: DictConfig, device: torch.device) -> str:
    """Verify and time every implementation on one shape, in torch or in JAX; return the table.

    The rows are appended to ``<output>.csv`` (``<output>_jax.csv`` in JAX) and plotted.
    """
    on_gpu = device.type == "cuda"
    dtype = config.dtype or ("bfloat16" if on_gpu else "float32")
    if dtype not in TOLERANCE:
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(TOLERANCE)}")
    if config.framework not in ("torch", "jax"):
        raise ValueError(f"framework is {config.framework!r}: choose 'torch' or 'jax'")
    shape = list(config.shape or ([8, 97, 97] if on_gpu else [1, 17, 33]))
    if config.framework == "jax":
        from .compare_jax import time_in_jax

        return time_in_jax(config, dtype, shape)
    from .compare_torch import time_in_torch

    return time_in_torch(config, device, dtype, shape)
