"""Run a call on channels-last tensors: allocate the results, then launch one pass per axis.

Shapes: N images, S spatial sizes, D query channels, C value channels. The kernels need contiguous channels and a
single stride between pixels in every array. channels_last tensors and channel slices of a projection buffer satisfy
this and are read in place; other arrays are copied into that layout once.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backward import line_backward_kernel
from ..call import Call, dtype_name
from ..forward import line_forward_kernel
from ..launches import plan
from . import launch
from .devices import device_of


def forward(
    call: Call[Tensor], result: Tensor | None, save_out: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the forward passes.

    Args:
        call: channels-last, (N, *S, channels).
        result: tensor that receives ``gamma * out + residual``, if the call has a residual.
        save_out: whether a backward pass will read the attention's output. If not, the last pass does not write
            ``out``, which may then share memory with ``result``.
        out: contiguous tensor that receives the attention's output; allocated if None.

    Returns:
        out: (N, *S, C), the attention's output.
        stats: (N, *S, 2) in float32, the maximum and the sum of each softmax.
    """
    if out is None:
        out = memory_for_out(call, result, save_out)
    stats = empty_per_pixel(call.query, 2)
    if out.numel() == 0:
        return out, stats
    query, query_stride = _by_pixel(call.query)
    key, key_stride = _by_pixel(call.key)
    value, value_stride = _by_pixel(call.value)
    residual, residual_stride = (None, 0) if call.residual is None else _by_pixel(call.residual)

    strides = query_stride, key_stride, value_stride, residual_stride
    device, channels = device_of(query.device.index), out.shape[-1]
    slabs: Any = (value, value_stride), (out, channels), (residual, residual_stride), (result, channels)
    problem = problem_of(call, max(strides), device.descriptors and _are_aligned(slabs))
    launches = plan.forward_launches(problem, device, residual is not None, save_out)
    if query.is_cuda and any(planned.tile.descriptors for planned in launches):
        # Encoding descriptors needs a CUDA context. A new thread, such as autograd's when it recomputes a checkpoint,
        # has none on the first GPU: device guards do nothing there, and Triton only sets one when it launches.
        torch.cuda.set_device(query.device)
    # A pass reads the previous statistics while it writes its own. All are allocated first: filling new memory, as for
    # deterministic algorithms, between two passes would keep them from overlapping.
    several_stats = [stats, *(torch.empty_like(stats) for _ in launches[1:])]
    previous = None
    for planned, stats in zip(launches, several_stats, strict=True):
        fused = planned.constants["HAS_RESIDUAL"]
        added = (residual, call.gamma, result) if fused else (None, None, None)
        arrays = query, key, value, out, stats, previous, *added
        descriptors: list[Any] = [None] * len(slabs)
        if planned.tile.descriptors:
            for i, (array, stride) in enumerate(slabs if fused else slabs[:2]):
                rows = planned.tile.block_m if i else planned.tile.block_n
                descriptors[i] = launch.tensor_descriptor(array, stride, planned, rows, planned.tile.block_c)
        launch.run(line_forward_kernel, planned, arrays, strides, call.options.scale, descriptors)
        previous = stats
    return out, stats


def memory_for_out(call: Call[Tensor], result: Tensor | None, save_out: bool) -> Tensor:
    """Return an uninitialised tensor for the attention's output, including its intermediate state between passes."""
    if save_out:
        return torch.empty_like(call.value, dtype=kept_dtype(call.value), memory_format=torch.contiguous_format)
    # The last pass writes only the result, so the earlier passes can use its memory if it has the value's dtype.
    if result is not None and result.dtype == call.value.dtype:
        return result
    return torch.empty_like(call.value, memory_format=torch.contiguous_format)


def backward(call: Call[Tensor], out: Tensor, stats: Tensor, grad: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Run the backward passes.

    Args:
        call: channels-last, (N, *S, channels); with gamma if the forward pass added a residual.
        out: (N, *S, C), the values that :func:`forward` returned, in any memory layout.
        stats: (N, *S, 2), likewise.
        grad: (N, *S, C), the gradient of the result in the value's dtype.
        gradients: tensors that receive the gradients of query, key and value: contiguous, or three slices of one
            contiguous tensor.

    Returns:
        The float32 delta of every pixel, (N, *S), whose sum is the gradient of gamma.
    """
    query, key, value = call.query, call.key, call.value
    dquery, dkey, dvalue = gradients
    delta = empty_per_pixel(query)
    if delta.numel() == 0:
        return delta
    query, query_stride = _by_pixel(query)
    key, key_stride = _by_pixel(key)
    value, value_stride = _by_pixel(value)
    grad, grad_stride = _by_pixel(grad)
    # The kernels expect the layout that the forward pass wrote, but saved-tensor hooks may return another one: for
    # example, save_on_cpu(pin_memory=True) returns dense NCHW tensors.
    out, stats = out.contiguous(), stats.contiguous()

    strides = query_stride, key_stride, value_stride, grad_stride
    joined = not dvalue.is_contiguous()
    gradient_stride = sum(array.shape[-1] for array in gradients) if joined else 0  # the inputs may be denser
    launches = plan.backward_launches(
        problem_of(call, max(*strides, gradient_stride)),
        device_of(query.device.index),
        has_gamma=call.gamma is not None,
        joined=joined,
    )
    wide_dquery, wide_dkey, wide_dvalue = plan.backward_partials(launches)
    partial_dquery = _memory_for_partial(dquery, wide_dquery)
    partial_dkey = _memory_for_partial(dkey, wide_dkey)
    partial_dvalue = _memory_for_partial(dvalue, wide_dvalue)
    arrays = query, key, value, out, stats, grad, call.gamma, delta
    arrays += partial_dquery, partial_dkey, partial_dvalue, dquery, dkey, dvalue
    for planned in launches:
        launch.run(line_backward_kernel, planned, arrays, strides, call.options.scale)
    return delta


def _memory_for_partial(gradient: Tensor, wide: bool) -> Tensor:
    """Return the buffer for a gradient's partial sums: the gradient, or a float32 tensor if it is too narrow."""
    if wide and gradient.dtype != torch.float32:
        return torch.empty_like(gradient, dtype=torch.float32, memory_format=torch.contiguous_format)
    return gradient


def kept_dtype(value: Tensor) -> torch.dtype:
    """Return the dtype in which the attention's output is kept for the backward pass."""
    return getattr(torch, plan.kept_dtype(dtype_name(value)))


def empty_per_pixel(query: Tensor, *numbers: int) -> Tensor:
    """Return an uninitialised float32 tensor of shape (N, *S, *numbers)."""
    return query.new_empty((*query.shape[:-1], *numbers), dtype=torch.float32)


def problem_of(call: Call[Tensor], widest_stride: int, aligned: bool = False) -> plan.Problem:
    """Return the sizes of a call; see :class:`ccnet.kernels.launches.problem.Problem` for the other arguments."""
    batch, *spatial, query_channels = call.query.shape
    value_channels = call.value.shape[-1]
    options = call.options
    return plan.Problem(
        batch, tuple(spatial), options.axes, query_channels, value_channels, dtype_name(call.query),
        options.precision, widest_stride, aligned,
    )  # fmt: skip


def _by_pixel(array: Tensor) -> tuple[Tensor, int]:
    """Return the array and its stride between pixels, after a contiguous copy if the kernels cannot read its layout."""
    if array.is_contiguous():
        return array, array.shape[-1]
    stride = None
    pixels = 1
    for size, step in zip(reversed(array.shape[:-1]), reversed(array.stride()[:-1]), strict=True):
        if size > 1:
            if stride is None:
                stride = step
            if step != stride * pixels:
                return array.contiguous(), array.shape[-1]
            pixels *= size
    if array.stride(-1) != 1 and array.shape[-1] != 1:
        return array.contiguous(), array.shape[-1]
    return array, array.shape[-1] if stride is None else stride


def _are_aligned(arrays: Iterable[tuple[Tensor | None, int]]) -> bool:
    """Return whether arrays, given with their pixel strides, have one dtype and the layout that descriptors require."""
    present = [(array, stride) for array, stride in arrays if array is not None]
    return len({array.dtype for array, _ in present}) == 1 and all(
        array.data_ptr() % 16 == 0 and stride * array.itemsize % 16 == 0 and stride >= array.shape[-1]
        for array, stride in present
    )
