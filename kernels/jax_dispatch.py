"""Which implementation a JAX call takes: the operation that becomes Triton kernels on a GPU, or the plain path."""

import importlib.util
import logging
from collections.abc import Sequence
from types import ModuleType

import jax
from jax import Array

from . import jax_reference as reference
from . import plan

_log = logging.getLogger(__name__)


def criss_cross_attention(
    query: Array, key: Array, value: Array, axes: Sequence[int], scale: float, channel_axis: int, backend: str
) -> Array:
    """See :func:`kernels.criss_cross_attention`; ``axes`` are sorted and the input is checked."""
    kernels = _kernels(backend, query, channel_axis)
    if kernels is None:
        return reference.criss_cross_attention(query, key, value, axes, scale, channel_axis)
    return kernels.criss_cross_attention(query, key, value, axes, scale, channel_axis, backend)


def criss_cross_residual(
    query: Array,
    key: Array,
    value: Array,
    residual: Array,
    gamma: Array,
    axes: Sequence[int],
    scale: float,
    channel_axis: int,
    backend: str,
) -> Array:
    """See :func:`kernels.criss_cross_residual`; ``axes`` are sorted and the input is checked."""
    kernels = _kernels(backend, query, channel_axis)
    if kernels is None:
        out = reference.criss_cross_attention(query, key, value, axes, scale, channel_axis)
        return (gamma.reshape(()) * out + residual).astype(residual.dtype)
    return kernels.criss_cross_residual(query, key, value, residual, gamma, axes, scale, channel_axis, backend)


def _kernels(backend: str, query: Array, channel_axis: int) -> ModuleType | None:
    """``jax_op``, or None for the plain path. Which platform the call is for shows when it is lowered.

    Raises:
        ValueError: backend "triton" where the kernels cannot take the call.
    """
    if backend == "reference" or query.size == 0:
        return None
    obstacle = None
    if str(query.dtype) not in plan.ITEM_SIZE:
        obstacle = f"the kernels take {', '.join(plan.ITEM_SIZE)}, not {query.dtype}"
    elif query.shape[channel_axis] > plan.MAX_QUERY_CHANNELS:
        obstacle = f"more than {plan.MAX_QUERY_CHANNELS} query channels do not fit on chip"
    elif importlib.util.find_spec("triton") is None:
        obstacle = "triton is not installed"
    if obstacle is None:
        from . import jax_op

        return jax_op
    if backend == "triton":
        raise ValueError(f"backend='triton' cannot take this call: {obstacle}; use backend='reference'")
    if jax.default_backend() == "gpu":
        log_once(obstacle)
    return None


def log_once(obstacle: str) -> None:
    """Say why a GPU does not get its kernels."""
    if obstacle not in _logged:
        _logged.add(obstacle)
        _log.warning("criss-cross attention takes the plain path: %s", obstacle)


_logged: set[str] = set()
