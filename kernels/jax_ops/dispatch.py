"""Choose between the Triton kernels and the reference for JAX arrays, as far as possible before lowering."""

import importlib.util
from collections.abc import Sequence

import jax
from jax import Array

from .. import plan
from ..call import Call, Options
from ..fallback import refusal, warn_once
from . import reference


def attend(call: Call[Array]) -> Array:
    """Attend with the primitives, which lower to the kernels on a GPU, or fall back to the reference.

    Args:
        call: the validated call.

    Raises:
        ValueError: backend is "triton", but the kernels do not support the call.
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
    """Implement :func:`ccnet.kernels.criss_cross_weights` without a kernel, as a single row is too little work."""
    return reference.attention_weights(query, key, position, recurrence, options)


def _obstacle(call: Call[Array]) -> str | None:
    """Return why the kernels do not support the call on any platform, or None if they may."""
    dtype = str(call.query.dtype)
    if dtype not in plan.ITEM_SIZE:
        return f"the kernels support {', '.join(plan.ITEM_SIZE)}, not {dtype}"
    if call.query.shape[call.options.channel_axis] > plan.MAX_QUERY_CHANNELS:
        return f"more than {plan.MAX_QUERY_CHANNELS} query channels do not fit on chip"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None
