"""The attention as a JAX function with a custom derivative, built on three primitives.

The tangent of the result is linear in those of the arrays, and its transpose is the backward pass: in reverse mode, JAX
runs only the forward and the backward pass.

The primitives take dense channels-last arrays, (N, *S, channels). For other layouts the channel axis is moved, which
XLA implements as a copy.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from ..call import Call, Options
from .primitives import forward, tangent

# Checkpoint name of the attention's output and statistics, for policies that keep them and recompute the rest.
KEPT = "criss_cross_kept"


def attend(call: Call[Array]) -> Array:
    """Compute the attention with the primitives, which lower to the kernels on a GPU and to the reference elsewhere."""
    query, key, value, options, residual, gamma = call
    channel_axis = options.channel_axis
    options = options._replace(channel_axis=-1)
    if residual is None or gamma is None:
        out = _attention(*_alike(_channels_last(channel_axis, query, key, value)), options)
    else:
        images = _channels_last(channel_axis, query, key, value, residual)
        out = _residual(*_alike([*images, gamma.reshape(1)]), options)
    return jnp.moveaxis(out, -1, 1) if channel_axis == 1 else out


def _channels_last(channel_axis: int, *arrays: Array) -> list[Array]:
    return [jnp.moveaxis(array, 1, -1) if channel_axis == 1 else array for array in arrays]


def _alike(arrays: Sequence[Array]) -> list[Array]:
    """Make all arrays vary over the same ``shard_map`` axes: each shard gets its own copy of a shared gamma."""
    varying: list[frozenset[Any]] = [jax.typeof(array).mat.varying for array in arrays]
    every = frozenset[Any]().union(*varying)
    return [
        jax.lax.pcast(array, tuple(every - own), to="varying") if every - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


# ---- attention


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _attention(query: Array, key: Array, value: Array, options: Options) -> Array:
    out, _ = forward(query, key, value, options=options, save_out=True)
    return out.astype(value.dtype)


@_attention.defjvp
def _differentiate_attention(
    options: Options, arrays: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    out, stats = forward(*arrays, options=options, save_out=True)
    (change,) = tangent(*arrays, out, stats, *tangents, options=options)
    return out.astype(arrays[2].dtype), change


# ---- attention, scaled and added to a residual


@partial(jax.custom_jvp, nondiff_argnums=(5,))
def _residual(query: Array, key: Array, value: Array, residual: Array, gamma: Array, options: Options) -> Array:
    # Only a backward pass needs the attention's output; otherwise, it is never written.
    (result,) = forward(query, key, value, residual, gamma, options=options, save_out=False)
    return result


@_residual.defjvp
def _differentiate_residual(
    options: Options, arrays: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    query, key, value, _, gamma = arrays
    result, out, stats = forward(*arrays, options=options, save_out=True)
    out, stats = (checkpoint_name(array, KEPT) for array in (out, stats))
    (change,) = tangent(query, key, value, out, stats, *tangents, gamma, options=options)
    return result, change
