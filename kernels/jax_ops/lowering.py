"""Lower the primitives to the Triton kernels where an NVIDIA GPU can run them, and to the reference elsewhere.

The functions take and return the arrays listed in ``primitives.py``, channels-last.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..call import Call, Options, dtype_name
from ..fallback import capability_obstacle, refusal, warn_once
from ..launches import plan
from . import reference


def forward_on_cuda(*arrays: Array, options: Options, save_out: bool) -> list[Array]:
    """Lower the forward pass to kernel launches, or to the reference where the kernels cannot run."""
    if not arrays[0].size or not _kernels_run(options):
        return forward_reference(*arrays, options=options, save_out=save_out)
    from . import passes

    query, key, value, *residual_and_gamma = arrays
    return passes.forward(Call(query, key, value, options, *residual_and_gamma), save_out)


def backward_on_cuda(*arrays: Array, options: Options) -> list[Array]:
    """Lower the backward pass to kernel launches, or to the reference where the kernels cannot run."""
    if not arrays[0].size or not _kernels_run(options):
        return backward_reference(*arrays, options=options)
    from . import passes

    query, key, value, out, stats, grad, *gamma = arrays
    return passes.backward(Call(query, key, value, options, None, *gamma), out, stats, grad)


def forward_reference(
    query: Array,
    key: Array,
    value: Array,
    residual: Array | None = None,
    gamma: Array | None = None,
    *,
    options: Options,
    save_out: bool,
) -> list[Array]:
    """Lower the forward pass to the reference; the statistics are the maximum of the scores and the sum of weights."""
    _refuse_triton(options)
    out, weights = reference.attend_and_weigh(Call(query, key, value, options))
    stats = jnp.concatenate([weights.maximum, weights.total], axis=-1)
    kept = out.astype(plan.kept_dtype(dtype_name(value)))
    if residual is None or gamma is None:
        return [kept, stats]
    result = (gamma * out + residual).astype(residual.dtype)
    return [result, kept, stats] if save_out else [result]


def backward_reference(
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    stats: Array,
    grad: Array,
    gamma: Array | None = None,
    *,
    options: Options,
) -> list[Array]:
    """Lower the backward pass to the derivative of the reference."""
    _refuse_triton(options)
    maximum, total = jnp.split(stats, 2, axis=-1)
    *gradients, delta = reference.gradients(Call(query, key, value, options), out, maximum, total, grad)
    if gamma is not None:
        gradients = [(gamma * gradient).astype(gradient.dtype) for gradient in gradients]
    return [*gradients, delta]


def tangent_reference(
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    stats: Array,
    dquery: Array,
    dkey: Array,
    dvalue: Array,
    dresidual: Array | None = None,
    dgamma: Array | None = None,
    gamma: Array | None = None,
    *,
    options: Options,
) -> list[Array]:
    """Lower the tangent, which no kernel computes, to that of the reference."""

    def attend(query: Array, key: Array, value: Array) -> Array:
        return reference.attend(Call(query, key, value, options))

    _, change = jax.jvp(attend, (query, key, value), (dquery, dkey, dvalue))
    if dresidual is None or dgamma is None or gamma is None:
        return [change]
    return [(gamma * change + dgamma * out + dresidual).astype(dresidual.dtype)]


def on_rocm(reference: Callable[..., list[Array]]) -> Callable[..., list[Array]]:
    """Return the lowering for AMD GPUs: ``reference``, which also logs once why it replaces the kernels."""

    def lowered(*arrays: Array, **parameters: Any) -> list[Array]:
        results = reference(*arrays, **parameters)
        warn_once("with JAX, the kernels run on NVIDIA GPUs only")
        return results

    return lowered


def _refuse_triton(options: Options) -> None:
    if options.backend == "triton":
        raise ValueError(
            "backend='triton' cannot run this call: it is lowered for a platform other than CUDA; use backend='auto'"
        )


def _kernels_run(options: Options) -> bool:
    """Return whether the kernels can run on this machine's CUDA devices; if not, log the reason once.

    Raises:
        ValueError: they cannot run, and backend is "triton".
    """
    obstacle = _obstacle()
    if obstacle is None:
        return True
    if options.backend == "triton":
        raise refusal(obstacle)
    warn_once(obstacle)
    return False


def _obstacle() -> str | None:
    """Return why the kernels cannot run on this machine's CUDA devices, or None if they can."""
    import triton

    if triton.knobs.runtime.interpret:
        return "Triton is in interpreter mode (TRITON_INTERPRET=1)"
    from .binding import triton_library
    from .targets import device

    try:
        triton_library()
    except ValueError as error:
        return str(error)
    return capability_obstacle(device().capability)
