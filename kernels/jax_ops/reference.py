"""Criss-cross attention in plain jax.numpy: the formula of ``torch_ops/reference.py`` for every JAX platform.

The softmax over the keys of all axes is computed in one part per axis, with a shared maximum and a shared sum, so that
scores of different axes are never concatenated or transposed. The weighted sums of values are normalised last.

Shapes: N images, S spatial sizes, D query channels, C value channels, L the length of a line, "others" the spatial
axes other than that of the line.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..call import Call, Options


class Weights(NamedTuple):
    """The unnormalised attention weights.

    Attributes:
        parts: exp(score - maximum), one (N, *others, L, L) array per axis.
        maximum: (N, *S, 1), the maximum score over the keys of all axes.
        total: (N, *S, 1), the sum of ``parts`` over the keys of all axes.
    """

    parts: list[Array]
    maximum: Array
    total: Array


def attend(call: Call[Array]) -> Array:
    """Implement :func:`ccnet.kernels.criss_cross_attention`, adding the residual if the call has one."""
    out, _ = attend_and_weigh(call)
    residual, gamma = call.residual, call.gamma
    if residual is None or gamma is None:
        return out
    return (gamma.reshape(()) * out + residual).astype(residual.dtype)


def attend_and_weigh(call: Call[Array]) -> tuple[Array, Weights]:
    """Return the attention, without the residual, and its weights."""
    query, key, value, options, *_ = call
    weights = _weights(query, key, options)
    value_last = _channels_last(value, options.channel_axis).astype(weights.total.dtype)
    out = _sum_over_axes(value_last, weights.parts, options) / weights.total
    return (jnp.moveaxis(out, -1, 1) if options.channel_axis == 1 else out).astype(value.dtype), weights


def gradients(call: Call[Array], out: Array, maximum: Array, total: Array, grad: Array) -> list[Array]:
    """Return the gradients of query, key and value, and delta, the sum of ``out * grad`` over the channels.

    Args:
        call: channels-last; its residual and gamma are not read.
        out: (N, *S, C), the attention.
        maximum, total: (N, *S, 1), as in :class:`Weights`.
        grad: (N, *S, C), the gradient of the attention.
    """
    query, key, value, options, *_ = call
    wide = maximum.dtype
    query_wide, key_wide, value_wide = query.astype(wide), key.astype(wide), value.astype(wide)
    delta = (out.astype(wide) * grad.astype(wide)).sum(-1, keepdims=True)
    scaled, shift = grad.astype(wide) / total, delta / total
    by_axis: list[list[Array]] = []
    for axis in options.axes:
        q, k, v, g = (_lines(array, axis) for array in (query_wide, key_wide, value_wide, scaled))
        weights = jnp.exp(_scores(q * options.scale, k, axis, options) - _lines(maximum, axis))
        dscores = weights * (_product(g, v.mT) - _lines(shift, axis)) * options.scale
        parts = _product(dscores, k), _product(dscores.mT, q), _product(weights.mT, g)
        by_axis.append([_lines_back(part, axis) for part in parts])
    sums = [reduce(jnp.add, parts) for parts in zip(*by_axis, strict=True)]
    arrays = zip(sums, (query, key, value), strict=True)
    return [*(gradient.astype(array.dtype) for gradient, array in arrays), delta]


def attention_weights(query: Array, key: Array, position: Sequence[int], recurrence: int, options: Options) -> Array:
    """Implement :func:`ccnet.kernels.criss_cross_weights`."""
    # row @ A: every position distributes its weight over the keys on its lines.
    weights = _weights(query, key, options)
    transposed = [part.mT for part in weights.parts]
    batch_and_space = _channels_last(query, options.channel_axis).shape[:-1]
    row = jnp.zeros(batch_and_space, transposed[0].dtype).at[(slice(None), *position)].set(1)
    for _ in range(recurrence):
        row = _sum_over_axes(row[..., None] / weights.total, transposed, options)[..., 0]
    return row


def _sum_over_axes(values: Array, weights: Sequence[Array], options: Options) -> Array:
    """Multiply each line of (N, *S, C) ``values`` by its weights, and sum over the axes."""
    first, *others = (
        _lines_back(_product(line_weights, _lines(values, axis)), axis)
        for axis, line_weights in zip(options.axes, weights, strict=True)
    )
    return sum(others, start=first)


def _weights(query: Array, key: Array, options: Options) -> Weights:
    """Return the unnormalised joint softmax over the keys of all axes."""
    # Unscaled scores overflow float16 at |q| = |k| = 40 per channel, so half precision is widened first.
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = _channels_last(query, options.channel_axis).astype(wide) * options.scale
    key = _channels_last(key, options.channel_axis).astype(wide)

    scores = [_scores(_lines(query, axis), _lines(key, axis), axis, options) for axis in options.axes]
    highest = [_lines_back(s.max(-1, keepdims=True), axis) for s, axis in zip(scores, options.axes, strict=True)]
    # The weights do not depend on the maximum, which only prevents overflow.
    maximum = jax.lax.stop_gradient(reduce(jnp.maximum, highest))
    parts = [jnp.exp(s - _lines(maximum, axis)) for s, axis in zip(scores, options.axes, strict=True)]
    first, *others = (_lines_back(p.sum(-1, keepdims=True), axis) for p, axis in zip(parts, options.axes, strict=True))
    return Weights(parts, maximum, sum(others, start=first))


def _scores(query: Array, key: Array, axis: int, options: Options) -> Array:
    """Return the masked scores along ``axis``: scaled queries and keys (N, *others, L, D) -> (N, *others, L, L)."""
    scores = _product(query, key.mT)
    if axis == options.axes[-1]:  # every line contains the position itself: only the last axis keeps it
        return scores
    return jnp.where(jnp.eye(scores.shape[-1], dtype=bool), -jnp.inf, scores)


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
