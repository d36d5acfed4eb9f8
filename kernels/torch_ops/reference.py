"""Criss-cross attention in plain torch: the reference that every kernel is tested against.

Shapes: N images, S spatial sizes, D query channels, C value channels, L the length of a line, "others" the spatial
axes other than that of the line.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..call import Call, Options
from .transforms import without_autocast


def attend(call: Call[Tensor]) -> Tensor:
    """Implement :func:`ccnet.kernels.criss_cross_attention`, adding the residual if the call has one."""
    out = _attended_value(call)
    residual, gamma = call.residual, call.gamma
    if residual is None or gamma is None:
        return out
    return (gamma.reshape(1) * out + residual).to(residual.dtype)  # gamma may have more axes than out


def gradients(call: Call[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of query, key, value and gamma, which torch can differentiate, trace and batch.

    Args:
        call: the call; its residual is not read.
        grad: gradient of ``gamma * attention``, or of the attention if gamma is None.
    """
    query, key, value, options, _, gamma = call

    def scaled(query: Tensor, key: Tensor, value: Tensor, gamma: Tensor) -> Tensor:
        return (gamma.reshape(1) * attend(Call(query, key, value, options))).to(grad.dtype)

    pull: Any = torch.func.vjp(scaled, query, key, value, value.new_ones(()) if gamma is None else gamma)[1]
    *others, dgamma = pull(grad)
    return *others, None if gamma is None else dgamma


def _attended_value(call: Call[Tensor]) -> Tensor:
    query, key, value, options, *_ = call
    with without_autocast(query.device.type):  # autocast would cast the products back to half precision
        attention = _attention(query, key, options)
        value_last = _channels_last(value, options.channel_axis).to(attention[0].dtype)
        *others, last = zip(options.axes, attention, strict=True)
        # Start with the last axis: its result has the memory layout of the output, and a sum inherits the layout of
        # its first operand.
        out = _weighted_lines(value_last, *last)
        for axis_and_weights in reversed(others):
            out = out + _weighted_lines(value_last, *axis_and_weights)
        if options.channel_axis == 1:
            out = out.movedim(out.ndim - 1, 1)
        return out.to(value.dtype)


def attention_weights(query: Tensor, key: Tensor, position: Sequence[int], recurrence: int, options: Options) -> Tensor:
    """Implement :func:`ccnet.kernels.criss_cross_weights`."""
    with without_autocast(query.device.type):
        attention = _attention(query, key, options)
        batch_and_space = _channels_last(query, options.channel_axis).shape[:-1]
        row = torch.zeros(batch_and_space, dtype=attention[0].dtype, device=query.device)
        row[(slice(None), *position)] = 1
        for _ in range(recurrence):
            # row @ A: every position distributes its weight over the keys on its lines.
            first, *others = (
                _weighted_lines(row.unsqueeze(-1), axis, weights.mT).squeeze(-1)
                for axis, weights in zip(options.axes, attention, strict=True)
            )
            row = sum(others, start=first)
        return row


def _weighted_lines(values: Tensor, axis: int, weights: Tensor) -> Tensor:
    """Multiply each line of (N, *S, C) ``values`` along ``axis`` by its (N, *others, L, L) weights."""
    return _lines_back(weights @ _lines(values, axis), axis)


def _attention(query: Tensor, key: Tensor, options: Options) -> list[Tensor]:
    """Return the joint softmax over the keys of all axes, as one (N, *others, L, L) tensor per axis."""
    # Unscaled scores overflow float16 at |q| = |k| = 40 per channel, so half precision is widened first.
    wide = torch.promote_types(query.dtype, torch.float32)
    query = _channels_last(query, options.channel_axis).to(wide)
    key = _channels_last(key, options.channel_axis).to(wide)
    if options.scale != 1:
        query = query * options.scale

    energies: list[Tensor] = []
    for axis in options.axes:
        energy = _lines(query, axis) @ _lines(key, axis).transpose(-2, -1)  # (N, *others, L, L)
        if axis != options.axes[-1]:  # every line contains the position itself: only the last axis keeps it
            # Derived from the scores, so that the mask of a distributed tensor is one as well.
            index = energy.new_ones(energy.shape[-1], dtype=torch.int64).cumsum(0)
            energy = energy.masked_fill_(index[:, None] == index, float("-inf"))
        energies.append(_lines_back(energy, axis))  # (N, *S, L)
    attention = torch.cat(energies, dim=-1).softmax(dim=-1)
    parts: Sequence[Tensor] = attention.split([energy.shape[-1] for energy in energies], dim=-1)
    lines = [_lines(part, axis) for axis, part in zip(options.axes, parts, strict=True)]
    if torch.compiler.is_compiling():
        # Inductor saves the softmax and views of it as separate tensors, and its backward pass may overwrite the
        # softmax before it reads the views, which gives wrong gradients. Copies do not share memory with the softmax.
        lines = [part.contiguous() for part in lines]
    return lines


def _channels_last(array: Tensor, channel_axis: int) -> Tensor:
    # One copy here saves a slower one per axis inside matmul; contiguous channels-last input is not copied.
    return array.movedim(1, array.ndim - 1).contiguous() if channel_axis == 1 else array


def _lines(array: Tensor, axis: int) -> Tensor:
    """View (N, *S, C) as (N, *others, L, C)."""
    return array.movedim(axis + 1, array.ndim - 2)  # torch.onnx without dynamo mishandles negative axes


def _lines_back(lines: Tensor, axis: int) -> Tensor:
    """View (N, *others, L, C) as (N, *S, C)."""
    return lines.movedim(lines.ndim - 2, axis + 1)
