"""What the losses need of torch and of jax.numpy where the two differ; what they share is written once.

Neither is imported here before an array of it arrives, but for torch's module class.
"""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

try:
    from torch.nn import Module, ModuleDict
except ImportError:  # with JAX alone, nobody moves the losses between devices
    ModuleDict = dict

    class Module:
        """What the losses use of torch's module."""

        def register_buffer(self, name: str, value: Any, persistent: bool = True) -> None:
            setattr(self, name, value)

        def __call__(self, *inputs: Any) -> Any:
            return self.forward(*inputs)


Array = TypeVar("Array")  # torch.Tensor or jax.Array


def is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def namespace(array: Array) -> ModuleType:
    """torch or jax.numpy, whose functions of the same name are used alike."""
    if is_torch(array):
        return sys.modules["torch"]
    import jax.numpy

    return jax.numpy


def cast(array: Array, dtype: Any) -> Array:
    return array.to(dtype) if is_torch(array) else array.astype(dtype)


def widened(array: Array) -> Array:
    """In float32, or float64 if it has that."""
    xp = namespace(array)
    return cast(array, xp.promote_types(array.dtype, xp.float32))


def as_index(array: Array) -> Array:
    """Integers as the framework indexes with."""
    return array.long() if is_torch(array) else array


def constant(array: Array) -> Array:
    """The array as a constant for the gradient."""
    if is_torch(array):
        return array.detach()
    import jax

    return jax.lax.stop_gradient(array)


def numbers(values: Sequence[float] | None) -> Any:
    """A list of a configuration as an array, for a buffer; a JAX array on its first use with one."""
    if values is None:
        return None
    torch = sys.modules.get("torch")
    return np.asarray(values, np.float32) if torch is None else torch.tensor(list(values), dtype=torch.float32)


def arange(count: int, like: Array) -> Array:
    xp = namespace(like)
    return xp.arange(count, device=like.device) if is_torch(like) else xp.arange(count)


def points(side: int, length: int, like: Array) -> Array:
    """``length`` indices from the first to the last of ``side``, evenly apart."""
    if is_torch(like):
        torch = namespace(like)
        return torch.linspace(0, side - 1, length, device=like.device, dtype=torch.float64).round().long()
    return np.linspace(0, side - 1, length).round().astype(int)


def is_readable(array: Array) -> bool:
    """Whether looking at the values waits for no device: on the CPU, and not inside ``jax.jit``."""
    if is_torch(array):
        return array.device.type == "cpu"
    import jax

    return not isinstance(array, jax.core.Tracer) and all(device.platform == "cpu" for device in array.devices())


def sum_by_index(values: Array, index: Array, bins: int) -> Array:
    """(P, ...) values, (P,) index below ``bins`` -> (bins, ...) sums of the values of each index."""
    if is_torch(values):
        return values.new_zeros(bins, *values.shape[1:]).index_add(0, index, values)
    import jax

    return jax.ops.segment_sum(values, index, num_segments=bins)


def of_class(array: Array, labels: Array) -> Array:
    """(N, K, *S), labels (N, *S) -> (N, *S), the channel that the label names."""
    if is_torch(array):
        return array.gather(1, labels[:, None])[:, 0]
    return namespace(array).take_along_axis(array, labels[:, None], axis=1)[:, 0]


def pixel_cross_entropy(logits: Array, labels: Array, class_weights: Array | None, ignore_index: int) -> Array:
    """(N, K, *S), labels (N, *S) -> (N, *S), zero where ignored."""
    if is_torch(logits):
        from torch.nn.functional import cross_entropy

        weight = None if class_weights is None else class_weights.to(logits.dtype)
        return cross_entropy(logits, labels, weight=weight, ignore_index=ignore_index, reduction="none")
    import jax
    import jax.numpy as jnp

    valid = labels != ignore_index
    index = jnp.where(valid, labels, 0)
    losses = -of_class(jax.nn.log_softmax(logits, axis=1), index)
    if class_weights is not None:
        losses = losses * jnp.asarray(np.asarray(class_weights) if is_torch(class_weights) else class_weights)[index]
    return jnp.where(valid, losses, 0)


def softmax(array: Array, axis: int) -> Array:
    if is_torch(array):
        return array.softmax(axis)
    import jax

    return jax.nn.softmax(array, axis=axis)


def resized(images: Array, size: Sequence[int]) -> Array:
    """(N, C, H, W) -> (N, C, *size), bilinear, corner to corner."""
    if is_torch(images):
        from torch.nn.functional import interpolate

        return interpolate(images, list(size), mode="bilinear", align_corners=True)
    import jax.numpy as jnp

    for axis, length in zip((2, 3), size, strict=True):
        side = images.shape[axis]
        points = np.linspace(0, side - 1, length)
        low = np.minimum(points.astype(int), side - 1)
        share = jnp.asarray(points - low, images.dtype).reshape([-1 if i == axis else 1 for i in range(4)])
        high = np.minimum(low + 1, side - 1)
        images = jnp.take(images, low, axis) * (1 - share) + jnp.take(images, high, axis) * share
    return images


def kth_smallest(values: Array, k: int) -> Array:
    """The k-th smallest of a flat array, k from 1."""
    return values.kthvalue(k).values if is_torch(values) else namespace(values).sort(values)[k - 1]
