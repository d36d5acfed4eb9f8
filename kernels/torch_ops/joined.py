"""Slices of one projection, whose gradients may be slices of one buffer too.

The backward pass of torch.split concatenates, and so copies, the gradients of its slices. The CPU operators write the
gradients of query, key and value into one buffer if these are slices of one, and the split below returns that buffer.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# torch leaves Tensor.split untyped.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import transforms


def split_channels(projected: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Split (N, C, *S) along the channels as torch.split does, with a backward pass that need not copy."""
    if torch.compiler.is_compiling() or not projected.requires_grad or transforms.are_active(projected):
        return torch.split(projected, list(sizes), dim=1)
    return _Split.apply(projected, sizes)  # pyright: ignore[reportReturnType]


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        return projected.split(sizes, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled() or transforms.are_active(*grads) or not are_slices(grads, 1):
            return torch.cat(grads, dim=1), None
        first = grads[0]
        shape = list(first.shape)
        shape[1] = sum(grad.shape[1] for grad in grads)
        return first.as_strided(shape, first.stride()), None


def are_slices(arrays: Sequence[Tensor], dim: int) -> bool:
    """Return whether the arrays are consecutive slices of one tensor along a dimension."""
    storage, strides, offset = storage_id(arrays[0]), arrays[0].stride(), arrays[0].storage_offset()
    for array in arrays:
        if storage_id(array) != storage or array.stride() != strides or array.storage_offset() != offset:
            return False
        offset += array.shape[dim] * strides[dim]
    return True


def storage_id(tensor: Tensor) -> int:
    """Return an identifier of the tensor's storage, which fake tensors have as well, unlike an address."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
