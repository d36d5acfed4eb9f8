"""Launch planned kernels with little CPU overhead, which is the bottleneck at small batch sizes.

On every launch, Triton inspects each argument to look up the kernel that it has compiled for such arguments. A network
keeps passing arguments with the same properties, so each planned launch caches its compiled kernels by the properties
that Triton specialises on, and calls them directly. Timings are in results/kernels_log.md.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# Triton is untyped.

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..launches.plan import Launch


def is_interpreted() -> bool:
    """Return whether Triton is in interpreter mode, in which kernels run on the CPU."""
    return triton.knobs.runtime.interpret  # pyright: ignore[reportAttributeAccessIssue]


def run(
    kernel: Any,
    launch: Launch,
    arrays: tuple[Tensor, *tuple[Tensor | None, ...]],
    strides: Sequence[int],
    scale: float,
) -> None:
    """Launch ``kernel`` on the current device and stream.

    Args:
        kernel: a ``triton.jit`` function that takes the arrays, their strides, length, inner and scale, then the
            launch's constants.
        launch: the planned launch.
        arrays: tensors in the order of the kernel's pointers; None for pointers that this launch does not use.
        strides: pixel strides, in elements, of the arrays that need not be dense.
        scale: factor applied to the scores.
    """
    arguments = (*arrays, *strides, launch.length, launch.inner, scale)
    kinds = [None if array is None else (array.dtype, array.data_ptr() % 16 == 0) for array in arrays]
    if torch.version.hip is not None:  # Triton's AMD backend also specialises on storage below 2 GiB
        kinds += [array is not None and array.untyped_storage().nbytes() < 2**31 for array in arrays]
    kind = (arrays[0].device.index, *kinds, *strides)
    found = launch.compiled.get(kind)
    if found is not None:
        compiled, constants = found
        compiled[(launch.grid, 1, 1)](*arguments, *constants)
        return
    compiled = kernel[(launch.grid,)](*arguments, **launch.constants, **launch.options)
    if not is_interpreted():
        constants = [launch.constants[name] for name in kernel.arg_names[len(arguments) :]]
        launch.compiled[kind] = compiled, constants
