"""Choose between the Triton kernels and the reference for JAX arrays, as far as possible before lowering."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from ..call import Call, Options, dtype_name
from ..fallback import channels_obstacle, dtype_obstacle, refusal, warn_once
from . import reference
from .explicit_axes import with_automatic_axes
from .promotion import usual_promotion


@usual_promotion()
def attend(call: Call[Array]) -> Array:
    """Compute the attention with the primitives, which lower to the kernels on a GPU, or with the reference.

    Args:
        call: the validated call; its arrays may be numpy's.

    Raises:
        ValueError: backend is "triton", but the kernels do not support the call.
    """
    call = _as_jax(call)
    like = call.value if call.residual is None else call.residual

    def with_arrays(*arrays: Array) -> Array:
        query, key, value, *others = arrays
        return _attend(Call(query, key, value, call.options, *others))

    return with_automatic_axes(with_arrays, call.arrays(), jax.typeof(like).sharding.spec)


def _attend(call: Call[Array]) -> Array:
    backend = call.options.backend
    if backend == "reference" or call.query.size == 0:
        return reference.attend(call)
    obstacle = _obstacle(call)
    if obstacle is None:
        from . import gradients

        return gradients.attend(call)
    if backend == "triton":
        raise refusal(obstacle)
    if jax.default_backend() == "gpu":
        warn_once(obstacle)
    return reference.attend(call)


@usual_promotion()
def attention_weights(query: Array, key: Array, position: Sequence[int], recurrence: int, options: Options) -> Array:
    """Implement :func:`ccnet.kernels.criss_cross_weights` with the reference: it only serves to inspect attention."""
    query, options = _scaled(jnp.asarray(query), options)

    def with_arrays(query: Array, key: Array) -> Array:
        return reference.attention_weights(query, key, position, recurrence, options)

    return with_automatic_axes(with_arrays, (query, jnp.asarray(key)), PartitionSpec())


def _as_jax(call: Call[Array]) -> Call[Array]:
    """Convert the arrays of a call to JAX and its scale to a constant; see :func:`_scaled`."""
    query, options = _scaled(jnp.asarray(call.query), call.options)
    key, value = jnp.asarray(call.key), jnp.asarray(call.value)
    residual = None if call.residual is None else jnp.asarray(call.residual)
    gamma = None if call.gamma is None else jnp.asarray(call.gamma)
    return Call(query, key, value, options, residual, gamma)


def _scaled(query: Array, options: Options) -> tuple[Array, Options]:
    """Make the scale a constant: a learned or traced scale is multiplied into the query."""
    scale = cast(Any, options.scale)
    if isinstance(scale, jax.Array):
        return (query * scale.reshape(())).astype(query.dtype), options._replace(scale=1.0)
    return query, options._replace(scale=float(scale))


def _obstacle(call: Call[Array]) -> str | None:
    """Return why the kernels do not support the call on any platform, or None if they may."""
    query = call.query
    return channels_obstacle(query.shape[call.options.channel_axis]) or dtype_obstacle(dtype_name(query))
