"""Run whole calls with the kernels on trial, in place of those in ``kernels/torch_ops/passes.py``.

They take the calls that :class:`ccnet.benchmarks.tuning.trial.Trial` makes, in bfloat16: two axes, D = 64, value
channels that are a multiple of 64, query, key and value as slices of one projection. Backward passes need gamma.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon.language import NVMMASharedLayout, bfloat16
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ...kernels.backward import line_backward_kernel
from ...kernels.call import Call
from ...kernels.launches import plan
from ...kernels.launches.problem import is_wide
from ...kernels.torch_ops import launch, passes
from ...kernels.torch_ops.devices import device_of
from ...kernels.torch_ops.joined import are_slices
from .backward import persistent_backward_kernel
from .forward import persistent_forward_kernel
from .long_backward import persistent_long_backward_kernel

WARPS = 8
SLAB = 64  # channels


class Buffers(NamedTuple):
    """How a persistent backward kernel divides its shared memory.

    Attributes:
        slab: channels of a slab.
        stages: slabs of the upstream gradient and of the value.
        third_stages: slabs of the output, or of the earlier gradient of the value.
    """

    slab: int
    stages: int
    third_stages: int


class Rings(NamedTuple):
    """How a persistent forward kernel divides its shared memory.

    Attributes:
        stages: slabs of the value.
        units: units of the output and of the residual.
        lag: a unit is copied to where the one ``lag`` units before the current one has been stored from.
        programs: the number of programs that share a multiprocessor.
    """

    stages: int
    units: int
    lag: int
    programs: int = 1


# By the longest line, and whether the pass adds the residual, which needs a ring of its own.
RINGS = {
    (128, False): Rings(3, 2, 1, programs=2),
    (128, True): Rings(4, 4, 1),
    (256, False): Rings(3, 4, 1),
    (256, True): Rings(2, 3, 1),
}
SHORT = Buffers(SLAB, 3, 2)
LONG_FIRST = Buffers(32, 3, 2)  # the first pass has a slab of dvalue besides, so that no other choice fits


def persistent_forward(
    call: Call[Tensor],
    result: Tensor | None,
    save_out: bool,
    rings: dict[tuple[int, bool], Sequence[int]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what :func:`ccnet.kernels.torch_ops.passes.forward` does, with persistent programs, for lines of up to 256.

    Args:
        call, result, save_out: as there.
        rings: replaces entries of ``RINGS``.

    Raises:
        ValueError: the kernels on trial do not support the call.
    """
    query, key, value, residual = call.query, call.key, call.value, call.residual
    _require_supported(call, longest=256)
    out = passes.memory_for_out(call, result, save_out)
    strides = [0 if array is None else array.stride(-2) for array in (query, key, value, residual)]
    device = device_of(query.device.index)
    problem = passes.problem_of(call, max(strides))
    launches = plan.forward_launches(problem, device, residual is not None, save_out)
    several_stats = [passes.empty_per_pixel(query, 2) for _ in launches]
    previous = None
    for planned, stats in zip(launches, several_stats, strict=True):
        fused = planned.constants["HAS_RESIDUAL"]
        keys = 128 if planned.length <= 128 else 256
        ring = Rings(*(RINGS | (rings or {}))[keys, fused])
        rows_of_slabs = (value, keys), (out, 128), (residual if fused else None, 128), (result if fused else None, 128)
        lines = value.numel() // (value.shape[-1] * planned.length)
        names = "D", "C", "MASK_SELF", "HAS_PREVIOUS", "HAS_RESIDUAL", "SAVE_OUT", "REVERSED", "WAITS", "SIGNALS"
        kernel: Any = persistent_forward_kernel
        kernel[(min(lines, ring.programs * device.processors),)](
            _describe(query, 128, query.shape[-1], planned), _describe(key, keys, key.shape[-1], planned),
            *(None if array is None else _describe(array, rows, SLAB, planned) for array, rows in rows_of_slabs),
            stats, previous, call.gamma if fused else None,
            strides[0], strides[2], strides[3], planned.length, planned.inner, lines, call.options.scale,
            **{name: planned.constants[name] for name in names}, WHOLE=planned.length == keys,
            STAGES=ring.stages, UNITS=ring.units, LAG=ring.lag, HALVES=keys // 128,
            BLOCK_M=128, BLOCK_N=keys, BLOCK_C=SLAB, num_warps=WARPS, launch_pdl=planned.constants["WAITS"],
            maxnreg=None if ring.programs == 1 else 65536 // (32 * WARPS * ring.programs),
        )  # fmt: skip
        previous = stats
    return out, several_stats[-1]


def persistent_backward(
    call: Call[Tensor], out: Tensor, stats: Tensor, grad: Tensor, gradients: Sequence[Tensor],
    long: tuple[int, int, int] | None = None,
) -> Tensor:  # fmt: skip
    """Do what :func:`ccnet.kernels.torch_ops.passes.backward` does, with persistent programs.

    Args:
        call, out, stats, grad, gradients: as there.
        long: the :class:`Buffers` of passes after the first along lines of 129 to 256 pixels; None leaves such lines,
            like longer ones, to the kernel in use.

    Raises:
        ValueError: the kernels on trial do not support the call.
    """
    _require_supported(call)
    if call.gamma is None or not are_slices(gradients, -1):
        raise ValueError("the kernels on trial need gamma, and gradients that are slices of one tensor")
    query, key, value = call.query, call.key, call.value
    dquery, dkey, dvalue = gradients
    strides = query.stride(-2), key.stride(-2), value.stride(-2), grad.stride(-2)
    device = device_of(query.device.index)
    launches = plan.backward_launches(passes.problem_of(call, max(strides)), device, has_gamma=True, joined=True)
    delta = passes.empty_per_pixel(query)
    partial_dquery, partial_dkey = (query.new_empty(query.shape, dtype=torch.float32) for _ in range(2))
    arrays: Any = (query, key, value, out, stats, grad, call.gamma, delta, partial_dquery, partial_dkey, dvalue)
    arrays += (*gradients,)
    for planned in launches:
        kernel: Any
        if planned.length <= 128:
            kernel, buffers, queries, keys = persistent_backward_kernel, SHORT, 128, 128
            blocks = {"BLOCK": 128}
        elif planned.length <= 256 and long is not None:
            buffers = LONG_FIRST if planned.constants["FIRST"] else Buffers(*long)
            kernel, queries, keys = persistent_long_backward_kernel, 256, 128
            blocks = {"BLOCK_M": queries, "BLOCK_N": keys}
        else:
            launch.run(line_backward_kernel, planned, arrays, strides, call.options.scale)
            continue
        described = [
            (query, queries, query.shape[-1]),
            (key, keys, key.shape[-1]),
            *((array, rows, buffers.slab) for array, rows in ((value, keys), (grad, queries), (out, queries))),
            (dvalue, keys, buffers.slab),
        ]
        lines = dvalue.numel() // (dvalue.shape[-1] * planned.length)
        names = "D", "C", "MASK_SELF", "FIRST", "LAST", "REVERSED", "WAITS", "SIGNALS"
        kernel[(min(lines, device.processors),)](
            *(_describe(*each, planned) for each in described),
            stats, call.gamma, delta, partial_dquery, partial_dkey, dquery, dkey,
            strides[0], strides[2], strides[3], planned.length, planned.inner, lines, call.options.scale,
            **{name: planned.constants[name] for name in names}, **blocks,
            STAGES=buffers.stages, THIRD_STAGES=buffers.third_stages, BLOCK_C=buffers.slab,
            num_warps=WARPS, launch_pdl=planned.constants["WAITS"],
        )  # fmt: skip
    return delta


def _require_supported(call: Call[Tensor], longest: int | None = None) -> None:
    query, value = call.query, call.value
    problem = passes.problem_of(call, max(query.stride(-2), value.stride(-2)))
    supported = query.dtype == torch.bfloat16 and query.shape[-1] == 64 and value.shape[-1] % SLAB == 0
    if not supported or is_wide(problem) or not are_slices((query, call.key, value), -1):
        raise ValueError(
            "the kernels on trial need slices of one projection in bfloat16, 64 query channels, a multiple of "
            f"{SLAB} value channels and images of less than 2^31 numbers, got {query.shape[-1]} and {value.shape[-1]} "
            f"channels in {query.dtype}"
        )
    if longest is not None and max(problem.spatial) > longest:
        raise ValueError(f"the kernels on trial take lines of up to {longest} pixels, got {problem.spatial}")


def _describe(array: Tensor, rows: int, channels: int, planned: plan.Launch) -> TensorDescriptor:
    """Describe an array for bulk copies of blocks of (1, rows, channels)."""
    plain = launch.tensor_descriptor(array, array.stride(-2), planned, rows, channels)
    default_layout: Any = NVMMASharedLayout.get_default_for
    layout = default_layout(plain.block_shape, bfloat16)
    return TensorDescriptor(plain.base, plain.shape, plain.strides, plain.block_shape, layout)
