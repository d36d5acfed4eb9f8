"""Array functions whose names or arguments differ between torch and JAX, so that each loss is written only once.

Neither framework is imported before one of its arrays is passed in, except for ``torch.nn`` if torch is installed.
"""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    # Type checkers see torch's types: a jax.Array has the same methods and operators wherever the losses use them.
    from torch import Tensor as Array
    from torch.nn import Module as Module
    from torch.nn import ModuleDict as ModuleDict
else:
    Array = Any  # torch.Tensor or jax.Array
    try:
        from torch.nn import Module, ModuleDict
    except ImportError:  # JAX only: the losses have no parameters and are never moved between devices
        ModuleDict = dict

        class Module:
            """The subset of ``torch.nn.Module`` that the losses use."""

            def register_buffer(self, name: str, value: Any, persistent: bool = True) -> None:
                """Set an attribute that is neither saved nor moved between devices."""
                setattr(self, name, value)

            def __call__(self, *inputs: Any, **options: Any) -> Any:
                return self.forward(*inputs, **options)


def is_torch(array: Any) -> bool:
    """Return whether ``array`` is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def namespace(array: Array) -> ModuleType:
    """Return torch or jax.numpy, for functions that have the same name and arguments in both."""
    return sys.modules["torch"] if is_torch(array) else _jax().numpy


def _jax() -> Any:
    """Import JAX, untyped because ``Array`` is a torch tensor to type checkers."""
    import jax

    return jax


def cast(array: Array, dtype: Any) -> Array:
    """Convert the array to ``dtype``."""
    return array.to(dtype) if is_torch(array) else namespace(array).astype(array, dtype)


def at_least_float32(array: Array) -> Array:
    """Convert float16 and bfloat16 to float32; keep float32 and float64."""
    return cast(array, namespace(array).float32) if array.dtype.itemsize < 4 else array


def as_index(array: Array) -> Array:
    """Convert integers to an index dtype: int64 in torch, at least int32 in JAX, where 256 is 0 in uint8."""
    if is_torch(array):
        return array.long()
    return cast(array, namespace(array).int32) if array.dtype.itemsize < 4 else array


def stop_gradient(array: Array) -> Array:
    """Return the array detached from the gradient computation."""
    return array.detach() if is_torch(array) else _jax().lax.stop_gradient(array)


def float_array(values: Sequence[float] | None) -> Any:
    """Convert a list from a configuration to a float32 array for a buffer; None stays None.

    The result is a torch tensor if torch is imported, otherwise a NumPy array, which JAX converts on first use.
    """
    if values is None:
        return None
    torch = sys.modules.get("torch")
    return np.asarray(values, np.float32) if torch is None else torch.tensor(list(values), dtype=torch.float32)


def arange(count: int, like: Array) -> Array:
    """Return 0, ..., count - 1 on the device of ``like``."""
    xp = namespace(like)
    return xp.arange(count, device=like.device) if is_torch(like) else xp.arange(count)


def evenly_spaced(side: int, length: int, like: Array) -> Array:
    """Return ``length`` evenly spaced indices from 0 to ``side`` - 1, rounded to integers, for indexing ``like``."""
    if is_torch(like):
        torch = namespace(like)
        return torch.linspace(0, side - 1, length, device=like.device, dtype=torch.float64).round().long()
    indices: Any = np.linspace(0, side - 1, length).round().astype(int)
    return indices


def is_readable(array: Any) -> bool:
    """Return whether Python can read the values without a device synchronisation.

    They must be on the CPU, outside compilation, and outside the transforms of torch.func and JAX.
    """
    if is_torch(array):
        torch = namespace(array)
        traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        return array.device.type == "cpu" and not traced
    traced = isinstance(array, _jax().core.Tracer)
    return not traced and all(device.platform == "cpu" for device in array.devices())


def segment_sum(values: Array, index: Array, segments: int) -> Array:
    """Sum the values (P, ...) that share an index (P,) in [0, segments), giving (segments, ...)."""
    if is_torch(values):
        return values.new_zeros(segments, *values.shape[1:]).index_add(0, index, values)
    return _jax().ops.segment_sum(values, index, num_segments=segments)


def gather_class(array: Array, labels: Array) -> Array:
    """Select each pixel's channel by its label: (N, K, *S), labels (N, *S) in [0, K) -> (N, *S).

    Labels outside [0, K) are an error in torch and give NaN in JAX, which cannot raise errors in compiled functions.
    """
    if is_torch(array):
        return array.gather(1, as_index(labels)[:, None])[:, 0]
    jnp, labels = namespace(array), as_index(labels)
    labels = jnp.where(labels < 0, array.shape[1], labels)  # as an index, -1 would stand for the last class
    return jnp.take_along_axis(array, labels[:, None], axis=1, mode="fill")[:, 0]


def pixel_cross_entropy(logits: Array, labels: Array, class_weights: Array | None, ignore_index: int) -> Array:
    """Return the cross entropy of each pixel, zero where ignored: (N, K, *S), labels (N, *S) -> (N, *S)."""
    if is_torch(logits):
        from torch.nn.functional import cross_entropy

        weight = None if class_weights is None else class_weights.to(logits.dtype)
        return cross_entropy(logits, as_index(labels), weight=weight, ignore_index=ignore_index, reduction="none")
    jnp = namespace(logits)
    valid = labels != ignore_index
    index = jnp.where(valid, labels, 0)
    losses = -gather_class(_jax().nn.log_softmax(logits, axis=1), index)
    if class_weights is not None:
        losses = losses * jnp.asarray(class_weights)[index]
    return jnp.where(valid, losses, 0)


def softmax(array: Array, axis: int) -> Array:
    """Return the softmax along ``axis``."""
    return array.softmax(axis) if is_torch(array) else _jax().nn.softmax(array, axis=axis)


def resize_bilinear(images: Array, size: Sequence[int]) -> Array:
    """Resize bilinearly with aligned corners: (N, C, H, W) -> (N, C, *size)."""
    if is_torch(images):
        from torch.nn.functional import interpolate

        return interpolate(images, list(size), mode="bilinear", align_corners=True)
    jnp = namespace(images)
    for axis, length in zip((2, 3), size, strict=True):
        side = images.shape[axis]
        points = np.linspace(0, side - 1, length)
        low = np.minimum(points.astype(int), side - 1)
        share = jnp.asarray(points - low, images.dtype).reshape([-1 if i == axis else 1 for i in range(4)])
        high = np.minimum(low + 1, side - 1)
        images = jnp.take(images, low, axis) * (1 - share) + jnp.take(images, high, axis) * share
    return images


def kth_smallest(values: Array, k: int) -> Array:
    """Return the k-th smallest value of a 1-D array, counting from 1."""
    return values.kthvalue(k).values if is_torch(values) else namespace(values).sort(values)[k - 1]
