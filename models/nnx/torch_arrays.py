"""Conversion between torch tensors and the variables of a twin, which differ in layout."""

# Some JAX functions are only partially typed.

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

if TYPE_CHECKING:  # networks loaded from weight files do not need torch
    from torch import Tensor


def from_torch(tensor: "Tensor | np.ndarray") -> Array:
    """Convert a torch parameter, or an array in torch's layout, to the twin's: (H, W, I, O) for convolutions."""
    array = _numpy(tensor)
    return _copied(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)


def _copied(array: np.ndarray, dtype: Any = None) -> Array:
    """Copy to a JAX array, because training changes the arrays of a torch network in place."""
    # jnp.asarray compiles a program for every shape in JAX 0.10.
    return jax.device_put(np.array(array, dtype, order="C"))


def _numpy(tensor: Any) -> np.ndarray:
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # torch and NumPy share no bfloat16
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy()


def to_torch(array: Array) -> "Tensor":
    """Convert a parameter to torch's layout, the inverse of :func:`from_torch`."""
    values = np.asarray(array)
    return statistic_to_torch(values.transpose(3, 2, 0, 1) if values.ndim == 4 else values)


def statistic_to_torch(array: "Array | np.ndarray") -> "Tensor":
    """Convert a non-trainable array to a tensor, the inverse of :func:`statistic`."""
    import torch

    half = array.dtype == jnp.bfloat16
    tensor = torch.from_numpy(np.array(array, np.float32 if half else None, order="C"))
    return tensor.bfloat16() if half else tensor


def parameter(tensor: "Tensor | np.ndarray") -> nnx.Param[Array]:
    """Convert a torch parameter, or an array in torch's layout, to a trainable variable."""
    return nnx.Param(from_torch(tensor))


def statistic(tensor: "Tensor | np.ndarray", dtype: Any = None) -> nnx.BatchStat[Array]:
    """Convert a torch buffer or an array to a non-trainable variable."""
    return nnx.BatchStat(_copied(_numpy(tensor), dtype))
