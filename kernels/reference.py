"""Criss-cross attention in plain torch: the formula that every kernel is compared with.

Shapes: N images, S spatial sizes, D query channels, C value channels, L the length of one line,
"others" the spatial axes that are not attended along.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def criss_cross_attention(
    query: Tensor, key: Tensor, value: Tensor, axes: Sequence[int], scale: float, channel_axis: int
) -> Tensor:
    """See :func:`kernels.criss_cross_attention`; ``axes`` are sorted and the input is checked."""
    with torch.autocast(query.device.type, enabled=False):  # autocast would run the products in half again
        attention = _attention(query, key, axes, scale, channel_axis)
        value_last = _channels_last(value, channel_axis).to(attention[0].dtype)
        out = None
        # The last axis comes first: its result lies in memory as the output should, and a sum takes after its
        # first operand.
        for axis, weights in reversed(list(zip(axes, attention, strict=True))):
            part = _lines_back(weights @ _lines(value_last, axis), axis)
            out = part if out is None else out + part
        if channel_axis == 1:
            out = out.movedim(-1, 1)
        return out.to(value.dtype)


def criss_cross_weights(
    query: Tensor,
    key: Tensor,
    position: Sequence[int],
    recurrence: int,
    axes: Sequence[int],
    scale: float,
    channel_axis: int,
) -> Tensor:
    """See :func:`kernels.criss_cross_weights`."""
    with torch.autocast(query.device.type, enabled=False):
        attention = _attention(query, key, axes, scale, channel_axis)
        batch_and_space = _channels_last(query, channel_axis).shape[:-1]
        row = torch.zeros(batch_and_space, dtype=attention[0].dtype, device=query.device)
        row[(slice(None), *position)] = 1
        for _ in range(recurrence):
            # row @ A: a line's positions pass their weight on to the keys of that line.
            row = sum(
                _lines_back(weights.mT @ _lines(row.unsqueeze(-1), axis), axis).squeeze(-1)
                for axis, weights in zip(axes, attention, strict=True)
            )
        return row


def _attention(query: Tensor, key: Tensor, axes: Sequence[int], scale: float, channel_axis: int) -> list[Tensor]:
    """Softmax over the keys of all axes together, as one (N, *others, L, L) tensor per axis."""
    # Unscaled scores leave float16's range at |q| = |k| = 40 per channel, so halves are widened first.
    wide = torch.promote_types(query.dtype, torch.float32)
    query = _channels_last(query, channel_axis).to(wide)
    key = _channels_last(key, channel_axis).to(wide)
    if scale != 1:
        query = query * scale

    energies = []
    for axis in axes:
        energy = _lines(query, axis) @ _lines(key, axis).mT  # (N, *others, L, L)
        if axis != axes[-1]:  # the position itself is a key of every axis: only the last one keeps it
            index = torch.arange(energy.shape[-1], device=energy.device)
            energy = energy.masked_fill_(index[:, None] == index, float("-inf"))
        energies.append(_lines_back(energy, axis))  # (N, *S, L)
    attention = torch.cat(energies, dim=-1).softmax(dim=-1)
    parts = attention.split([energy.shape[-1] for energy in energies], dim=-1)
    return [_lines(part, axis) for axis, part in zip(axes, parts, strict=True)]


def _channels_last(array: Tensor, channel_axis: int) -> Tensor:
    # One copy here saves a slower one per axis inside matmul; channels-last input is not copied at all.
    return array.movedim(1, -1).contiguous() if channel_axis == 1 else array


def _lines(array: Tensor, axis: int) -> Tensor:
    """(N, *S, C) -> (N, *others, L, C), a view."""
    return array.movedim(axis + 1, -2)


def _lines_back(lines: Tensor, axis: int) -> Tensor:
    """(N, *others, L, C) -> (N, *S, C), a view."""
    return lines.movedim(-2, axis + 1)
