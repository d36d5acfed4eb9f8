"""Launches of planned kernels with little work on the CPU, which limits a small batch.

Triton inspects every argument of every call to find the kernel that it compiled for arguments of that kind, once
per axis. A network calls with the same kinds again and again, so each planned launch remembers its compiled
kernels by what Triton distinguishes, and calls them directly. The times are in results/kernels_log.md.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# Triton comes without types.

from collections.abc import Sequence
from typing import Any

import triton
from torch import Tensor

from ..plan import Launch


def is_interpreted() -> bool:
    """Return whether Triton runs its kernels in the interpreter, on the CPU."""
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
        arrays: pointers in the kernel's order; None for those that the launch's constants leave unused.
        strides: elements from pixel to pixel, of those arrays whose stride is free.
        scale: factor on the scores.
    """
    arguments = (*arrays, *strides, launch.length, launch.inner, scale)
    kinds = [None if array is None else (array.dtype, array.data_ptr() % 16 == 0) for array in arrays]
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
