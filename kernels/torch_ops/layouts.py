"""Channels-last views of arrays, and channels-last memory for the results of operators."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def to_last(array: Tensor, channel_axis: int) -> Tensor:
    """View an array with its channels in axis 1 or -1 as (N, *S, C)."""
    return array.movedim(1, -1) if channel_axis == 1 else array


def from_last(array: Tensor, channel_axis: int) -> Tensor:
    """View (N, *S, C) as an array with its channels in axis 1 or -1."""
    return array.movedim(-1, 1) if channel_axis == 1 else array


def empty_result(like: Tensor, channel_axis: int, dtype: torch.dtype) -> Tensor:
    """Allocate an operator's result, without initialising it: the shape of ``like``, channels-last in memory.

    Autograd forbids callers to change a result in-place if it is a view, even one of new memory, so this one is not.
    """
    if channel_axis == -1:
        return like.new_empty(like.shape, dtype=dtype)
    images, channels, *spatial = like.shape
    sizes = [images, *spatial, channels]
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(like.ndim)]
    strides.insert(1, strides.pop())
    return like.new_empty_strided(like.shape, strides, dtype=dtype)


def empty_gradients(arrays: Sequence[Tensor], joined: bool) -> list[Tensor]:
    """Return uninitialised contiguous gradients of (N, *S, channels) arrays.

    If ``joined``, the first one has the channels of all arrays, and the others have none.
    """
    widths = [array.shape[-1] for array in arrays]
    if joined:
        widths = [sum(widths), *[0] * (len(widths) - 1)]
    return [arrays[0].new_empty((*arrays[0].shape[:-1], width)) for width in widths]
