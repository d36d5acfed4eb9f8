"""The attention as a JAX function with a custom VJP, built on two primitives.

The primitives take dense channels-last arrays, (N, *S, channels). For other layouts the channel axis is moved, which
XLA implements as a copy.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# JAX leaves some of its functions untyped.

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from ..call import Call, Options
from .primitives import backward, forward

# Checkpoint name of the attention's output and statistics, for policies that keep them and recompute the rest.
KEPT = "criss_cross_kept"


def attend(call: Call[Array]) -> Array:
    """Compute the attention with the primitives, which lower to the kernels on a GPU and to the reference elsewhere."""
    query, key, value, options, residual, gamma = call
    channel_axis = options.channel_axis
    options = options._replace(channel_axis=-1)
    out: Any
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


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(query: Array, key: Array, value: Array, options: Options) -> Array:
    return _attention_forward(query, key, value, options)[0]


def _attention_forward(query: Array, key: Array, value: Array, options: Options) -> tuple[Array, tuple[Array, ...]]:
    out, stats = forward(query, key, value, options=options, save_out=True)
    return out.astype(value.dtype), (query, key, value, out, stats)


def _attention_backward(options: Options, saved: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    dquery, dkey, dvalue, _ = backward(*saved, grad, options=options)
    return dquery, dkey, dvalue


_attention.defvjp(_attention_forward, _attention_backward)


# ---- attention, scaled and added to a residual


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _residual(query: Array, key: Array, value: Array, residual: Array, gamma: Array, options: Options) -> Array:
    # Only a backward pass needs the attention's output; otherwise, it is never written.
    (result,) = forward(query, key, value, residual, gamma, options=options, save_out=False)
    return result


def _residual_forward(
    query: Array, key: Array, value: Array, residual: Array, gamma: Array, options: Options
) -> tuple[Array, tuple[Array, ...]]:
    result, out, stats = forward(query, key, value, residual, gamma, options=options, save_out=True)
    out, stats = (checkpoint_name(array, KEPT) for array in (out, stats))
    return result, (query, key, value, out, stats, gamma)


def _residual_backward(options: Options, saved: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    query, key, value, out, stats, gamma = saved
    dquery, dkey, dvalue, delta = backward(
        query, key, value, out, stats, grad.astype(value.dtype), gamma, options=options
    )
    return dquery, dkey, dvalue, grad, delta.sum().astype(gamma.dtype).reshape(1)


_residual.defvjp(_residual_forward, _residual_backward)
