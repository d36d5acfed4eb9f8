"""Launch planned kernels with little CPU overhead, which is the bottleneck at small batch sizes.

On every launch, Triton inspects each argument to look up the kernel that it has compiled for such arguments. A network
keeps passing arguments with the same properties, so each planned launch caches its compiled kernels by the properties
that Triton specialises on, and calls them directly. Timings are in results/kernels_log.md.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..launches.plan import Launch


def is_interpreted() -> bool:
    """Return whether Triton is in interpreter mode, in which kernels run on the CPU."""
    return triton.knobs.runtime.interpret


def run(
    kernel: Any,
    launch: Launch,
    arrays: tuple[Tensor, *tuple[Tensor | None, ...]],
    strides: Sequence[int],
    scale: float,
    descriptors: Sequence[TensorDescriptor | None] = (),
) -> None:
    """Launch ``kernel`` on the current device and stream.

    Args:
        kernel: a ``triton.jit`` function that takes the arrays, their descriptors and strides, length, inner and
            scale, then the launch's constants.
        launch: the planned launch.
        arrays: tensors in the order of the kernel's pointers; None for pointers that this launch does not use.
        strides: pixel strides, in elements, of the arrays that need not be dense.
        scale: factor applied to the scores.
        descriptors: tensor descriptors of some of the arrays, or None for each.
    """
    arguments = (*arrays, *descriptors, *strides, launch.length, launch.inner, scale)
    kinds = [None if array is None else (array.dtype, array.data_ptr() % 16 == 0) for array in arrays]
    if torch.version.hip is not None:  # Triton's AMD backend also specialises on storage below 2 GiB
        kinds += [array is not None and array.untyped_storage().nbytes() < 2**31 for array in arrays]
    kind = (arrays[0].device.index, *kinds, *strides)
    cached = launch.compiled.get(kind)
    if cached is not None:
        compiled, constants = cached
        compiled[(launch.grid, 1, 1)](*arguments, *constants)
        return
    compiled = kernel[(launch.grid,)](*arguments, **launch.constants, **launch.options)
    if not is_interpreted():
        constants = [launch.constants[name] for name in kernel.arg_names[len(arguments) :]]
        launch.compiled[kind] = compiled, constants


def tensor_descriptor(array: Tensor, stride: int, launch: Launch, rows: int, slab: int) -> TensorDescriptor:
    """Describe an array for Hopper's Tensor Memory Accelerator as (lines // inner, length, inner * stride).

    Line i is [i // inner, :, i % inner * stride :], and a block is (1, rows, slab). The hardware fills rows beyond a
    line with zeros, and does not write them.

    Args:
        array: (N, *S, C).
        stride: its pixel stride in elements.
        launch: the planned launch.
        rows: the number of rows of a block.
        slab: the number of channels of a block.
    """
    channels, plane = array.shape[-1], launch.length * launch.inner
    # The last pixel ends with its own channels, even where the next one would start later.
    shape = [array.numel() // (channels * plane), launch.length, (launch.inner - 1) * stride + channels]
    return TensorDescriptor(array, shape, [plane * stride, launch.inner * stride, 1], [1, rows, slab])
