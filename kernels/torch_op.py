"""The Triton kernels as torch operators, ``ccnet::``: launches, fake kernels, autograd.

The operators move the channels to the end of (N, C, *S) arrays themselves: outside, each move would be a node of
the graph, forward and backward. Every array must have its channels side by side and one
stride from pixel to pixel: true of channels_last tensors and of channel slices of a projection buffer, so those
are read where they are. Anything else is copied into that layout once.

Results are channels-last in memory, whatever the input was, so that a second call finds what it needs.
Autocast does not reach in here: like the plain path, the operator computes in the dtype it is given.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from . import launch, plan
from .backward import line_backward_kernel
from .forward import line_forward_kernel
from .precision import float32_precision


def criss_cross_attention(
    query: Tensor, key: Tensor, value: Tensor, axes: Sequence[int], scale: float, channel_axis: int
) -> Tensor:
    """See :func:`kernels.criss_cross_attention`; ``axes`` are sorted and the input is checked."""
    out, _ = torch.ops.ccnet.criss_cross(query, key, value, axes, scale, float32_precision(), channel_axis)
    return out.to(value.dtype)


def criss_cross_residual(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residual: Tensor,
    gamma: Tensor,
    axes: Sequence[int],
    scale: float,
    channel_axis: int,
) -> Tensor:
    """See :func:`kernels.criss_cross_residual`; ``axes`` are sorted and the input is checked."""
    inputs = (query, key, value, residual, gamma)
    # The attention's output is kept for the backward pass alone; without one it is never written.
    save_out = torch.is_grad_enabled() and any(array.requires_grad for array in inputs)
    options = axes, scale, float32_precision(), channel_axis
    result, _, _ = torch.ops.ccnet.criss_cross_residual(*inputs, *options, save_out)
    return result


# ---- launches


def _to_last(array: Tensor, channel_axis: int) -> Tensor:
    return array.movedim(1, -1) if channel_axis == 1 else array


def _from_last(array: Tensor, channel_axis: int) -> Tensor:
    return array.movedim(-1, 1) if channel_axis == 1 else array


def _like(array: Tensor) -> Tensor:
    return torch.empty_like(array, memory_format=torch.contiguous_format)


def _kept_out(value: Tensor) -> Tensor:
    """The output as it is kept for the backward pass."""
    dtype = getattr(torch, plan.kept_dtype(str(value.dtype).removeprefix("torch.")))
    return torch.empty_like(value, dtype=dtype, memory_format=torch.contiguous_format)


def _per_pixel(query: Tensor, *numbers: int) -> Tensor:
    return query.new_empty((*query.shape[:-1], *numbers), dtype=torch.float32)


@cache
def device_of(index: int | None) -> plan.Device:
    """What the plan needs to know of a GPU; the interpreter (None) is taken for a Hopper."""
    if index is None:
        return plan.Device("interpreter", (9, 0), 1, 232448)
    properties = torch.cuda.get_device_properties(index)
    return plan.Device(
        properties.name,
        (properties.major, properties.minor),
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,
    )


def _problem(query: Tensor, value: Tensor, axes: Sequence[int], precision: str, *strides: int) -> plan.Problem:
    batch, *spatial, query_channels = query.shape
    dtype = str(query.dtype).removeprefix("torch.")
    return plan.Problem(
        batch, tuple(spatial), tuple(axes), query_channels, value.shape[-1], dtype, precision, max(strides)
    )


def _by_pixel(array: Tensor) -> tuple[Tensor, int]:
    """The array, and its stride from pixel to pixel; a copy if that is not one number."""
    stride = None
    pixels = 1
    for size, step in zip(reversed(array.shape[:-1]), reversed(array.stride()[:-1]), strict=True):
        if size > 1:
            if stride is None:
                stride = step
            if step != stride * pixels:
                break
            pixels *= size
    else:
        if array.stride(-1) == 1 or array.shape[-1] == 1:
            return array, array.shape[-1] if stride is None else stride
    return array.contiguous(), array.shape[-1]


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residual: Tensor | None,
    gamma: Tensor | None,
    result: Tensor | None,
    axes: Sequence[int],
    scale: float,
    precision: str,
    save_out: bool,
) -> tuple[Tensor, Tensor]:
    """Run the passes; fills ``result`` if it is there. Returns ``out`` and the softmax's maximum and sum."""
    in_place = not save_out and result.dtype == value.dtype
    out = result if in_place else (_kept_out(value) if save_out else _like(value))
    stats = _per_pixel(query, 2)
    if out.numel() == 0:
        return out, stats
    (query, query_stride), (key, key_stride), (value, value_stride) = map(_by_pixel, (query, key, value))
    residual, residual_stride = (None, 0) if residual is None else _by_pixel(residual)

    strides = query_stride, key_stride, value_stride, residual_stride
    problem = _problem(query, value, axes, precision, *strides)
    launches = plan.forward_launches(problem, device_of(query.device.index), residual is not None, save_out)
    other = torch.empty_like(stats) if len(launches) > 1 else None
    for planned in launches:
        arrays = query, key, value, out, stats, other, residual, gamma, result
        launch.run(line_forward_kernel, planned, arrays, strides, scale)
        stats, other = other, stats
    return out, other


def _on_device(function):
    """Triton launches on the current device, which need not be the arrays'."""

    def run(query: Tensor, *args):
        if query.is_cuda and query.device.index != torch.cuda.current_device():
            with torch.cuda.device(query.device):
                return function(query, *args)
        return function(query, *args)

    return run


@_on_device
def _launch_attention(query, key, value, axes, scale, precision, channel_axis):
    query, key, value = (_to_last(array, channel_axis) for array in (query, key, value))
    out, stats = _forward(query, key, value, None, None, None, axes, scale, precision, True)
    return _from_last(out, channel_axis), stats


@_on_device
def _launch_residual(query, key, value, residual, gamma, axes, scale, precision, channel_axis, save_out):
    query, key, value, residual = (_to_last(array, channel_axis) for array in (query, key, value, residual))
    result = _like(residual)
    out, stats = _forward(query, key, value, residual, gamma, result, axes, scale, precision, save_out)
    return _from_last(result, channel_axis), _from_last(out, channel_axis) if save_out else value.new_empty(0), stats


@_on_device
def _launch_backward(query, key, value, out, stats, grad, gamma, axes, scale, precision, channel_axis):
    arrays = (_to_last(array, channel_axis) for array in (query, key, value, out, grad))
    *gradients, delta = _backward(*arrays, stats, gamma, axes, scale, precision)
    return *(_from_last(gradient, channel_axis) for gradient in gradients), delta


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    grad: Tensor,
    stats: Tensor,
    gamma: Tensor | None,
    axes: Sequence[int],
    scale: float,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the passes; returns the gradients of query, key and value, and delta per pixel."""
    dquery, dkey, dvalue = _like(query), _like(key), _like(value)
    delta = _per_pixel(query)
    if dvalue.numel() == 0:
        return dquery.zero_(), dkey.zero_(), dvalue, delta.zero_()
    (query, query_stride), (key, key_stride), (value, value_stride) = map(_by_pixel, (query, key, value))
    grad, grad_stride = _by_pixel(grad)

    strides = query_stride, key_stride, value_stride, grad_stride
    problem = _problem(query, value, axes, precision, *strides)
    launches = plan.backward_launches(problem, device_of(query.device.index), gamma is not None)
    partials = plan.backward_partials(launches)
    partial_dquery, partial_dkey, partial_dvalue = (
        torch.empty_like(array, dtype=torch.float32) if wide and array.dtype != torch.float32 else array
        for array, wide in zip((dquery, dkey, dvalue), partials, strict=True)
    )
    arrays = query, key, value, out, stats, grad, gamma, delta
    arrays += partial_dquery, partial_dkey, partial_dvalue, dquery, dkey, dvalue
    for planned in launches:
        launch.run(line_backward_kernel, planned, arrays, strides, scale)
    return dquery, dkey, dvalue, delta


# ---- operators

_INPUTS = "Tensor query, Tensor key, Tensor value"
_OPTIONS = "int[] axes, float scale, str precision, int channel_axis"
_SCHEMAS = {
    "criss_cross": f"({_INPUTS}, {_OPTIONS}) -> (Tensor out, Tensor stats)",
    "criss_cross_residual": (
        f"({_INPUTS}, Tensor residual, Tensor gamma, {_OPTIONS}, bool save_out) "
        "-> (Tensor result, Tensor out, Tensor stats)"
    ),
    "criss_cross_backward": (
        f"({_INPUTS}, Tensor out, Tensor stats, Tensor grad, Tensor? gamma, {_OPTIONS}) "
        "-> (Tensor dquery, Tensor dkey, Tensor dvalue, Tensor delta)"
    ),
}
_LAUNCHES = {
    "criss_cross": _launch_attention,
    "criss_cross_residual": _launch_residual,
    "criss_cross_backward": _launch_backward,
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"ccnet::{_name}", _schema, tags=torch.Tag.pt2_compliant_tag)
    # On the CPU the kernels run under Triton's interpreter only, for tests.
    torch.library.impl(f"ccnet::{_name}", ("cuda", "cpu"), _LAUNCHES[_name])


@torch.library.register_fake("ccnet::criss_cross")
def _(query, key, value, axes, scale, precision, channel_axis):
    query, value = _to_last(query, channel_axis), _to_last(value, channel_axis)
    return _from_last(_kept_out(value), channel_axis), _per_pixel(query, 2)


@torch.library.register_fake("ccnet::criss_cross_residual")
def _(query, key, value, residual, gamma, axes, scale, precision, channel_axis, save_out):
    query, value, residual = (_to_last(array, channel_axis) for array in (query, value, residual))
    out = _from_last(_kept_out(value), channel_axis) if save_out else value.new_empty(0)
    return _from_last(_like(residual), channel_axis), out, _per_pixel(query, 2)


@torch.library.register_fake("ccnet::criss_cross_backward")
def _(query, key, value, out, stats, grad, gamma, axes, scale, precision, channel_axis):
    query, key, value = (_to_last(array, channel_axis) for array in (query, key, value))
    gradients = (_from_last(_like(array), channel_axis) for array in (query, key, value))
    return *gradients, _per_pixel(query)


def _save_attention(ctx, inputs, output):
    query, key, value, *ctx.options = inputs
    out, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)  # or zeros as large as these would be written for every backward
    ctx.save_for_backward(query, key, value, out, stats)


def _attention_backward(ctx, grad, _):
    grad = grad.to(ctx.saved_tensors[2].dtype)
    dquery, dkey, dvalue, _ = torch.ops.ccnet.criss_cross_backward(*ctx.saved_tensors, grad, None, *ctx.options)
    return dquery, dkey, dvalue, None, None, None, None


def _save_residual(ctx, inputs, output):
    query, key, value, _, gamma, *ctx.options, _ = inputs
    _, out, stats = output
    ctx.mark_non_differentiable(out, stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, out, stats, gamma)


def _residual_backward(ctx, grad, *_):
    *saved, gamma = ctx.saved_tensors
    dquery, dkey, dvalue, delta = torch.ops.ccnet.criss_cross_backward(
        *saved, grad.to(saved[2].dtype), gamma, *ctx.options
    )
    dgamma = delta.sum().to(gamma.dtype).reshape(gamma.shape)
    return dquery, dkey, dvalue, grad, dgamma, None, None, None, None, None


def _save_nothing(ctx, inputs, output):
    pass


def _twice(ctx, *grads):
    raise RuntimeError(
        "the Triton criss-cross attention can be differentiated once: for second derivatives use backend='reference'"
    )


torch.library.register_autograd("ccnet::criss_cross", _attention_backward, setup_context=_save_attention)
torch.library.register_autograd("ccnet::criss_cross_residual", _residual_backward, setup_context=_save_residual)
torch.library.register_autograd("ccnet::criss_cross_backward", _twice, setup_context=_save_nothing)
