"""Criss-cross attention in plain jax.numpy: the formula of ``torch_ops/reference.py`` for every JAX platform.

Shapes: N images, S spatial sizes, D query channels, C value channels, L the length of a line, "others" the spatial
axes other than that of the line.
"""

# pyright: reportUnknownMemberType=false
# jax.numpy leaves some of its functions untyped.

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from ..call import Call, Options


def attend(call: Call[Array]) -> Array:
    """Implement :func:`ccnet.kernels.criss_cross_attention`, adding the residual if the call has one."""
    query, key, value, options, residual, gamma = call
    attention = _attention(query, key, options)
    value_last = _channels_last(value, options.channel_axis).astype(attention[0].dtype)
    out = _sum_over_axes(value_last, attention, options)
    out = (jnp.moveaxis(out, -1, 1) if options.channel_axis == 1 else out).astype(value.dtype)
    if residual is None or gamma is None:
        return out
    return (gamma.reshape(()) * out + residual).astype(residual.dtype)


def attention_weights(query: Array, key: Array, position: Sequence[int], recurrence: int, options: Options) -> Array:
    """Implement :func:`ccnet.kernels.criss_cross_weights`."""
    # row @ A: every position distributes its weight over the keys on its lines.
    transposed = [weights.mT for weights in _attention(query, key, options)]
    batch_and_space = _channels_last(query, options.channel_axis).shape[:-1]
    row = jnp.zeros(batch_and_space, transposed[0].dtype).at[(slice(None), *position)].set(1)
    for _ in range(recurrence):
        row = _sum_over_axes(row[..., None], transposed, options)[..., 0]
    return row


def _sum_over_axes(values: Array, weights: Sequence[Array], options: Options) -> Array:
    """Multiply each line of (N, *S, C) ``values`` by its weights, and sum over the axes."""
    first, *others = (
        _lines_back(_product(line_weights, _lines(values, axis)), axis)
        for axis, line_weights in zip(options.axes, weights, strict=True)
    )
    return sum(others, start=first)


def _attention(query: Array, key: Array, options: Options) -> list[Array]:
    """Return the joint softmax over the keys of all axes, as one (N, *others, L, L) array per axis."""
    # Unscaled scores overflow float16 at |q| = |k| = 40 per channel, so half precision is widened first.
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = _channels_last(query, options.channel_axis).astype(wide) * options.scale
    key = _channels_last(key, options.channel_axis).astype(wide)

    energies: list[Array] = []
    for axis in options.axes:
        energy = _product(_lines(query, axis), _lines(key, axis).mT)  # (N, *others, L, L)
        if axis != options.axes[-1]:  # every line contains the position itself: only the last axis keeps it
            energy = jnp.where(jnp.eye(energy.shape[-1], dtype=bool), -jnp.inf, energy)
        energies.append(_lines_back(energy, axis))  # (N, *S, L)
    attention = jax.nn.softmax(jnp.concatenate(energies, axis=-1), axis=-1)
    ends = [sum(energy.shape[-1] for energy in energies[:count]) for count in range(1, len(energies))]
    parts = jnp.split(attention, ends, axis=-1)
    return [_lines(part, axis) for axis, part in zip(options.axes, parts, strict=True)]


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")  # the GPU default, TF32, keeps 10 mantissa bits of each factor


def _channels_last(array: Array, channel_axis: int) -> Array:
    return jnp.moveaxis(array, 1, -1) if channel_axis == 1 else array


def _lines(array: Array, axis: int) -> Array:
    """Move ``axis`` of (N, *S, C) next to the channels: (N, *others, L, C)."""
    return jnp.moveaxis(array, axis + 1, -2)


def _lines_back(lines: Array, axis: int) -> Array:
    """Move the lines of (N, *others, L, C) back to ``axis``: (N, *S, C)."""
    return jnp.moveaxis(lines, -2, axis + 1)
