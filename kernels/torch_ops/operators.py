"""The Triton kernels as torch custom operators, ``ccnet::*``: schemas, launches, fake kernels and autograd.

The operators themselves move the channels of (N, C, *S) arrays to the end: outside of them, each move would add a node
to the forward and backward graphs. Results are channels-last in memory regardless of the input layout, so that a
second call can read them in place. Autocast has no effect here: like the reference, the operators use the dtypes of
their inputs.

A torch operator takes a flat list of tensors and numbers, so a :class:`Call` is flattened here and rebuilt inside the
operator.
"""

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..call import Call, Options
from . import passes, reference, transforms
from .joined import are_slices, split_like
from .layouts import empty_gradients, empty_result, from_last, to_last

P = ParamSpec("P")
R = TypeVar("R")

_DEVICES = ("cuda", "cpu")  # on the CPU the kernels only run in Triton's interpreter, for tests
_INPUTS = "Tensor query, Tensor key, Tensor value"
_OPTIONS = "int[] axes, float scale, str precision, int channel_axis"
_OPTION_GRADIENTS = (None,) * 4


def attend(call: Call[Tensor]) -> Tensor:
    """Run the kernels' custom operator; the caller must ensure that they support the call."""
    query, key, value, options, residual, gamma = call
    flat_options = options.axes, options.scale, options.precision, options.channel_axis
    if residual is None or gamma is None:
        out, _ = torch.ops.ccnet.criss_cross.default(query, key, value, *flat_options)
        return out.to(value.dtype)
    arrays = (query, key, value, residual, gamma)
    # Only a backward pass needs the attention's output; otherwise, it is never written.
    save_out = torch.is_grad_enabled() and any(array.requires_grad for array in arrays)
    result, _, _ = torch.ops.ccnet.criss_cross_residual.default(*arrays, *flat_options, save_out)
    return result


def _options(axes: Sequence[int], scale: float, precision: str, channel_axis: int) -> Options:
    return Options(tuple(axes), scale, precision, channel_axis, "triton")


def _on_device(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Make the first tensor's device current during the call, because Triton launches on the current device."""

    def run(query: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        if query.is_cuda and query.device.index != torch.cuda.current_device():
            with torch.cuda.device(query.device):
                return function(query, *args, **kwargs)
        return function(query, *args, **kwargs)

    return run


# ---- attention

torch.library.define(
    "ccnet::criss_cross",
    f"({_INPUTS}, {_OPTIONS}) -> (Tensor out, Tensor stats)",
    tags=torch.Tag.pt2_compliant_tag,
)


@_on_device
def _attention(
    query: Tensor, key: Tensor, value: Tensor, axes: Sequence[int], scale: float, precision: str, channel_axis: int
) -> tuple[Tensor, Tensor]:
    out = empty_result(value, channel_axis, passes.kept_dtype(value))
    query, key, value = (to_last(array, channel_axis) for array in (query, key, value))
    call = Call(query, key, value, _options(axes, scale, precision, channel_axis))
    _, stats = passes.forward(call, result=None, save_out=True, out=to_last(out, channel_axis))
    return out, stats


@torch.library.register_fake("ccnet::criss_cross")
def _fake_attention(
    query: Tensor, key: Tensor, value: Tensor, axes: Sequence[int], scale: float, precision: str, channel_axis: int
) -> tuple[Tensor, Tensor]:
    out = empty_result(value, channel_axis, passes.kept_dtype(value))
    return out, passes.empty_per_pixel(to_last(query, channel_axis), 2)


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, *ctx.options = inputs
    out, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)  # otherwise, every backward pass would fill a gradient of stats with zeros
    ctx.save_for_backward(query, key, value, out, stats)


def _attention_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    query, key, value, out, stats = ctx.saved_tensors
    if transforms.are_active(grad):
        *gradients, _dgamma = reference.gradients(Call(query, key, value, _options(*ctx.options)), grad)
    else:
        *gradients, _delta = _gradients(query, key, value, out, stats, grad, None, ctx.options)
    return *gradients, *_OPTION_GRADIENTS


torch.library.impl("ccnet::criss_cross", _DEVICES, _attention)
torch.library.register_autograd("ccnet::criss_cross", _attention_backward, setup_context=_save_attention)


# ---- attention, scaled and added to a residual

torch.library.define(
    "ccnet::criss_cross_residual",
    f"({_INPUTS}, Tensor residual, Tensor gamma, {_OPTIONS}, bool save_out) "
    "-> (Tensor result, Tensor out, Tensor stats)",
    tags=torch.Tag.pt2_compliant_tag,
)


@_on_device
def _residual(
    query: Tensor, key: Tensor, value: Tensor, residual: Tensor, gamma: Tensor,
    axes: Sequence[int], scale: float, precision: str, channel_axis: int, save_out: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    result = empty_result(residual, channel_axis, residual.dtype)
    query, key, value, residual = (to_last(array, channel_axis) for array in (query, key, value, residual))
    call = Call(query, key, value, _options(axes, scale, precision, channel_axis), residual, gamma)
    out, stats = passes.forward(call, to_last(result, channel_axis), save_out)
    kept = from_last(out, channel_axis) if save_out else value.new_empty(0)
    return result, kept, stats


@torch.library.register_fake("ccnet::criss_cross_residual")
def _fake_residual(
    query: Tensor, key: Tensor, value: Tensor, residual: Tensor, gamma: Tensor,
    axes: Sequence[int], scale: float, precision: str, channel_axis: int, save_out: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    kept = empty_result(value, channel_axis, passes.kept_dtype(value)) if save_out else value.new_empty(0)
    result = empty_result(residual, channel_axis, residual.dtype)
    return result, kept, passes.empty_per_pixel(to_last(query, channel_axis), 2)


def _save_residual(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, _, gamma, *ctx.options, _ = inputs
    _, out, stats = output
    ctx.mark_non_differentiable(out, stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, out, stats, gamma)


def _residual_backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    query, key, value, out, stats, gamma = ctx.saved_tensors
    if transforms.are_active(grad):
        call = Call(query, key, value, _options(*ctx.options), None, gamma)
        dquery, dkey, dvalue, dgamma = reference.gradients(call, grad)
    else:
        dquery, dkey, dvalue, delta = _gradients(query, key, value, out, stats, grad, gamma, ctx.options)
        dgamma = delta.sum().to(gamma.dtype).reshape(gamma.shape)
    return dquery, dkey, dvalue, grad, dgamma, *_OPTION_GRADIENTS, None


torch.library.impl("ccnet::criss_cross_residual", _DEVICES, _residual)
torch.library.register_autograd("ccnet::criss_cross_residual", _residual_backward, setup_context=_save_residual)


# ---- the backward pass of both

torch.library.define(
    "ccnet::criss_cross_backward",
    f"({_INPUTS}, Tensor out, Tensor stats, Tensor grad, Tensor? gamma, {_OPTIONS}, bool joined) "
    "-> (Tensor dquery, Tensor dkey, Tensor dvalue, Tensor delta)",
    tags=torch.Tag.pt2_compliant_tag,
)


def _gradients(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, stats: Tensor, grad: Tensor, gamma: Tensor | None,
    options: Sequence[Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of query, key and value, as slices of one tensor if these three are, and delta."""
    arrays, axis = (query, key, value), options[-1]
    joined = not transforms.are_intercepted(grad) and are_slices(arrays, axis)
    dquery, dkey, dvalue, delta = torch.ops.ccnet.criss_cross_backward.default(
        *arrays, out, stats, grad.to(value.dtype), gamma, *options, joined
    )
    if joined:
        dquery, dkey, dvalue = split_like(dquery, arrays, axis)
    return dquery, dkey, dvalue, delta


@_on_device
def _backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, stats: Tensor, grad: Tensor, gamma: Tensor | None,
    axes: Sequence[int], scale: float, precision: str, channel_axis: int, joined: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    query, key, value, out, grad = (to_last(array, channel_axis) for array in (query, key, value, out, grad))
    call = Call(query, key, value, _options(axes, scale, precision, channel_axis), None, gamma)
    results = empty_gradients(call.arrays()[:3], joined)
    gradients = split_like(results[0], call.arrays()[:3], -1) if joined else results
    delta = passes.backward(call, out, stats, grad, gradients)
    dquery, dkey, dvalue = (from_last(result, channel_axis) for result in results)
    return dquery, dkey, dvalue, delta


@torch.library.register_fake("ccnet::criss_cross_backward")
def _fake_backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, stats: Tensor, grad: Tensor, gamma: Tensor | None,
    axes: Sequence[int], scale: float, precision: str, channel_axis: int, joined: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    arrays = [to_last(array, channel_axis) for array in (query, key, value)]
    dquery, dkey, dvalue = (from_last(result, channel_axis) for result in empty_gradients(arrays, joined))
    return dquery, dkey, dvalue, passes.empty_per_pixel(arrays[0])


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    pass


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
    raise RuntimeError(
        "the Triton criss-cross attention can be differentiated once: for second derivatives use backend='reference'"
    )


torch.library.impl("ccnet::criss_cross_backward", _DEVICES, _backward)
torch.library.register_autograd("ccnet::criss_cross_backward", _refuse_second_derivative, setup_context=_save_nothing)
