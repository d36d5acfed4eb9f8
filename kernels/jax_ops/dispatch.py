"""The choice between the Triton kernels and the reference for JAX arrays, as far as it is known before lowering."""

import importlib.util
from collections.abc import Sequence

import jax
from jax import Array

from .. import plan
from ..call import Call, Options
from ..fallback import refusal, warn_once
from . import reference


def attend(call: Call[Array]) -> Array:
    """Attend with the operation that becomes kernels when it is lowered for a GPU, or with the reference.

    Args:
        call: validated.

    Raises:
        ValueError: backend "triton" where the kernels cannot take the call.
    """
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


def attention_weights(query: Array, key: Array, position: Sequence[int], recurrence: int, options: Options) -> Array:
    """See :func:`ccnet.kernels.criss_cross_weights`: one row of the map is too little work for a kernel."""
    return reference.attention_weights(query, key, position, recurrence, options)


def _obstacle(call: Call[Array]) -> str | None:
    """Return why the kernels cannot take the call on any platform, or None if they can."""
    dtype = str(call.query.dtype)
    if dtype not in plan.ITEM_SIZE:
        return f"the kernels take {', '.join(plan.ITEM_SIZE)}, not {dtype}"
    if call.query.shape[call.options.channel_axis] > plan.MAX_QUERY_CHANNELS:
        return f"more than {plan.MAX_QUERY_CHANNELS} query channels do not fit on chip"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None
