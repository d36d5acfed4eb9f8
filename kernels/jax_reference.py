"""Criss-cross attention in plain jax.numpy: ``reference.py``'s formula, on every platform that JAX has.

Shapes: N images, S spatial sizes, D query channels, C value channels, L the length of one line,
"others" the spatial axes that are not attended along.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array


def criss_cross_attention(
    query: Array, key: Array, value: Array, axes: Sequence[int], scale: float, channel_axis: int
) -> Array:
    """See :func:`kernels.criss_cross_attention`; ``axes`` are sorted and the input is checked."""
    attention = _attention(query, key, axes, scale, channel_axis)
    value_last = _channels_last(value, channel_axis).astype(attention[0].dtype)
    out = sum(
        _lines_back(_product(weights, _lines(value_last, axis)), axis)
        for axis, weights in zip(axes, attention, strict=True)
    )
    return (jnp.moveaxis(out, -1, 1) if channel_axis == 1 else out).astype(value.dtype)


def criss_cross_weights(
    query: Array,
    key: Array,
    position: Sequence[int],
    recurrence: int,
    axes: Sequence[int],
    scale: float,
    channel_axis: int,
) -> Array:
    """See :func:`kernels.criss_cross_weights`."""
    attention = _attention(query, key, axes, scale, channel_axis)
    batch_and_space = _channels_last(query, channel_axis).shape[:-1]
    row = jnp.zeros(batch_and_space, attention[0].dtype).at[(slice(None), *position)].set(1)
    for _ in range(recurrence):
        # row @ A: a line's positions pass their weight on to the keys of that line.
        row = sum(
            _lines_back(_product(weights.mT, _lines(row[..., None], axis)), axis)[..., 0]
            for axis, weights in zip(axes, attention, strict=True)
        )
    return row


def _attention(query: Array, key: Array, axes: Sequence[int], scale: float, channel_axis: int) -> list[Array]:
    """Softmax over the keys of all axes together, as one (N, *others, L, L) array per axis."""
    # Unscaled scores leave float16's range at |q| = |k| = 40 per channel, so halves are widened first.
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = _channels_last(query, channel_axis).astype(wide) * scale
    key = _channels_last(key, channel_axis).astype(wide)

    energies = []
    for axis in axes:
        energy = _product(_lines(query, axis), _lines(key, axis).mT)  # (N, *others, L, L)
        if axis != axes[-1]:  # the position itself is a key of every axis: only the last one keeps it
            energy = jnp.where(jnp.eye(energy.shape[-1], dtype=bool), -jnp.inf, energy)
        energies.append(_lines_back(energy, axis))  # (N, *S, L)
    attention = jax.nn.softmax(jnp.concatenate(energies, axis=-1), axis=-1)
    ends = [sum(energy.shape[-1] for energy in energies[:count]) for count in range(1, len(energies))]
    parts = jnp.split(attention, ends, axis=-1)
    return [_lines(part, axis) for axis, part in zip(axes, parts, strict=True)]


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")  # or a GPU would keep 10 bits of each factor


def _channels_last(array: Array, channel_axis: int) -> Array:
    return jnp.moveaxis(array, 1, -1) if channel_axis == 1 else array


def _lines(array: Array, axis: int) -> Array:
    """(N, *S, C) -> (N, *others, L, C)."""
    return jnp.moveaxis(array, axis + 1, -2)


def _lines_back(lines: Array, axis: int) -> Array:
    """(N, *others, L, C) -> (N, *S, C)."""
    return jnp.moveaxis(lines, -2, axis + 1)
