"""The split of a projection into slices whose gradients can share one buffer.

The backward pass of torch.split copies the gradients of the slices to concatenate them. If query, key and value are
slices of one tensor, the operators write their gradients into a single buffer, which the split below returns as is. An
operator may not return several views of one buffer, so theirs return the buffer, and autograd's formula splits it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import transforms


def split_channels(projected: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Split (N, C, *S) along the channels like torch.split, avoiding its copy in the backward pass where possible."""
    plain = torch.compiler.is_compiling() or transforms.is_exporting()  # torch.jit.trace rejects Python functions
    if plain or not projected.requires_grad or transforms.are_active(projected):
        return torch.split(projected, list(sizes), dim=1)
    return _Split.apply(projected, sizes)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        return projected.split(sizes, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        derived = torch.is_grad_enabled() or transforms.are_active(*grads) or transforms.are_intercepted(*grads)
        if derived or not are_slices(grads, 1):
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


def split_like(joined: Tensor, arrays: Sequence[Tensor], dim: int) -> tuple[Tensor, ...]:
    """Split a tensor into views that are as wide as the arrays along a dimension."""
    return joined.split([array.shape[dim] for array in arrays], dim=dim)


def storage_id(tensor: Tensor) -> int:
    """Return an identifier of the tensor's storage; unlike a data pointer, fake tensors have it too."""
    return tensor.untyped_storage()._cdata
