"""Criss-cross attention on a CPU as torch custom operators: schemas, fake kernels and autograd.

They compute the same results as the reference with fewer copies and temporaries, and save the attention weights for the
backward pass. Results are channels-last in memory regardless of the input layout.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...call import Call, Options
from .. import reference, transforms
from ..joined import are_slices, split_like
from ..layouts import empty_gradients, empty_result, from_last, to_last
from .blocks import Blocks, wide_dtype

MIN_SCORES = 2**18  # with fewer per call, the reference is faster: it has half the overhead
_OPTIONS = "int[] axes, float scale, int channel_axis"


def supports(call: Call[Tensor]) -> bool:
    """Return whether the arrays are on a CPU and nothing requires or favours the reference.

    Transforms, dispatch modes and subclasses require it. Small calls favour it unless they are compiled.
    """
    arrays = call.arrays()
    if call.query.device.type != "cpu" or transforms.are_active(*arrays):
        return False
    if torch.compiler.is_compiling():
        return True
    return _number_of_scores(call) >= MIN_SCORES and not transforms.are_intercepted(*arrays)


def _number_of_scores(call: Call[Tensor]) -> int:
    images, *spatial, _ = to_last(call.query, call.options.channel_axis).shape
    return images * math.prod(spatial) * sum(spatial[axis] for axis in call.options.axes)


def attend(call: Call[Tensor]) -> Tensor:
    """Run the CPU attention operator; the caller must ensure that it supports the call."""
    query, key, value, options, residual, gamma = call
    save = torch.is_grad_enabled() and any(array.requires_grad for array in call.arrays())
    result, _ = torch.ops.ccnet.cpu_attention.default(
        query, key, value, residual, gamma, options.axes, options.scale, options.channel_axis, save
    )
    return result


def _call(
    arrays: Sequence[Tensor], axes: Sequence[int], scale: float, channel_axis: int,
    residual: Tensor | None = None, gamma: Tensor | None = None,
) -> Call[Tensor]:  # fmt: skip
    """Rebuild the call from the flat arguments of an operator."""
    query, key, value = arrays
    return Call(query, key, value, Options(tuple(axes), scale, "ieee", channel_axis, "auto"), residual, gamma)


# ---- the forward pass, with or without a residual

torch.library.define(
    "ccnet::cpu_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? residual, Tensor? gamma, "
    f"{_OPTIONS}, bool save) -> (Tensor result, Tensor weights)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.register_fake("ccnet::cpu_attention")
def _empty_results(
    query: Tensor, key: Tensor, value: Tensor, residual: Tensor | None, gamma: Tensor | None,
    axes: Sequence[int], scale: float, channel_axis: int, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    result = empty_result(value, channel_axis, value.dtype if residual is None else residual.dtype)
    shape = to_last(value, channel_axis).shape
    keys = sum(shape[1 + axis] for axis in axes)
    weights = query.new_empty((*shape[:-1], keys) if save else (0,), dtype=wide_dtype(query))
    return result, weights


def _forward(
    query: Tensor, key: Tensor, value: Tensor, residual: Tensor | None, gamma: Tensor | None,
    axes: Sequence[int], scale: float, channel_axis: int, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    result, weights = _empty_results(query, key, value, residual, gamma, axes, scale, channel_axis, save)
    arrays = [to_last(array, channel_axis) for array in (query, key, value)]
    added = None if residual is None else to_last(residual, channel_axis)
    blocks = Blocks(_call(arrays, axes, scale, -1, added, gamma))
    with transforms.without_autocast("cpu"):
        blocks.forward(to_last(result, channel_axis), weights if save else None)
    return result, weights


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, _, gamma, *ctx.options, _ = inputs
    _, weights = output
    ctx.mark_non_differentiable(weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, gamma, weights)


def _differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    query, key, value, gamma, weights = ctx.saved_tensors
    if torch.is_grad_enabled() or transforms.are_active(grad):  # the gradients may be differentiated again
        gradients = reference.gradients(_call((query, key, value), *ctx.options, gamma=gamma), grad)
    else:
        axis = ctx.options[-1]
        arrays = query, key, value
        joined = not transforms.are_intercepted(grad) and are_slices(arrays, axis)
        *gradients, dgamma = torch.ops.ccnet.cpu_attention_backward.default(
            *arrays, weights, grad, gamma, *ctx.options, joined
        )
        if joined:
            gradients = split_like(gradients[0], arrays, axis)
        gradients = *gradients, None if gamma is None else dgamma.to(gamma.dtype).reshape(gamma.shape)
    dquery, dkey, dvalue, dgamma = gradients
    return dquery, dkey, dvalue, None if gamma is None else grad, dgamma, None, None, None, None


torch.library.impl("ccnet::cpu_attention", "cpu", _forward)
torch.library.register_autograd("ccnet::cpu_attention", _differentiate, setup_context=_save)


# ---- the backward pass

torch.library.define(
    "ccnet::cpu_attention_backward",
    "(Tensor query, Tensor key, Tensor value, Tensor weights, Tensor grad, Tensor? gamma, "
    f"{_OPTIONS}, bool joined) -> (Tensor dquery, Tensor dkey, Tensor dvalue, Tensor dgamma)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.register_fake("ccnet::cpu_attention_backward")
def _empty_gradients(
    query: Tensor, key: Tensor, value: Tensor, weights: Tensor, grad: Tensor, gamma: Tensor | None,
    axes: Sequence[int], scale: float, channel_axis: int, joined: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    arrays = [to_last(array, channel_axis) for array in (query, key, value)]
    dquery, dkey, dvalue = (from_last(result, channel_axis) for result in empty_gradients(arrays, joined))
    return dquery, dkey, dvalue, weights.new_empty(())


def _backward(
    query: Tensor, key: Tensor, value: Tensor, weights: Tensor, grad: Tensor, gamma: Tensor | None,
    axes: Sequence[int], scale: float, channel_axis: int, joined: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    results = _empty_gradients(query, key, value, weights, grad, gamma, axes, scale, channel_axis, joined)
    arrays = [to_last(array, channel_axis) for array in (query, key, value)]
    *gradients, dgamma = results
    gradients = [to_last(gradient, channel_axis) for gradient in gradients]
    if joined:
        gradients = split_like(gradients[0], arrays, -1)
    with transforms.without_autocast("cpu"):
        blocks = Blocks(_call(arrays, axes, scale, -1, gamma=gamma))
        dgamma.copy_(blocks.backward(weights, to_last(grad, channel_axis), gradients))
    return results


torch.library.impl("ccnet::cpu_attention_backward", "cpu", _backward)
