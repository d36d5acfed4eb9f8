"""Run a call as JAX operations: one launch per axis, each of which reads the results of the previous one.

The launches come from ``plan.py``, as in ``torch_ops/passes.py``. Arrays are dense, (N, *S, channels), with N images,
S spatial sizes, D query channels and C value channels. XLA owns all memory, so a pass declares which pointers it
reads, updates or writes, and a result may reuse the buffer of a read-only pointer.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..backward import line_backward_kernel
from ..call import Call, dtype_name
from ..forward import line_forward_kernel
from ..launches import plan
from .binding import Updated, Written, launch
from .targets import device


def forward(call: Call[Array], save_out: bool) -> list[Array]:
    """Run the forward passes.

    Args:
        call: channels-last.
        save_out: whether a backward pass will read the attention's output.

    Returns:
        [out, stats] of shapes (N, *S, C) and (N, *S, 2). With a residual: [result] of shape (N, *S, C), followed by
        out and stats if ``save_out``.
    """
    query, key, value, _, residual, gamma = call
    launches = plan.forward_launches(_problem(call), device(), residual is not None, save_out)
    out_dtype = jnp.dtype(plan.kept_dtype(dtype_name(value))) if save_out else value.dtype
    results: dict[str, Array] = {}
    for planned in launches:
        out = results.get("out_ptr")
        saves = planned.constants["SAVE_OUT"]
        pointers: dict[str, Any] = {
            "query_ptr": query,
            "key_ptr": key,
            "value_ptr": value,
            "out_ptr": _out_pointer(value, out_dtype, out, saves),
            "stats_ptr": Written((*query.shape[:-1], 2), jnp.float32),
            "previous_stats_ptr": results.get("stats_ptr"),
            "residual_ptr": None,
            "gamma_ptr": None,
            "result_ptr": None,
            **dict.fromkeys(("value_desc", "out_desc", "residual_desc", "result_desc")),  # JAX cannot pass them
        }
        if residual is not None and planned.constants["HAS_RESIDUAL"]:
            in_place = out is not None and not saves and residual.dtype == value.dtype
            pointers["residual_ptr"] = residual
            pointers["gamma_ptr"] = gamma
            pointers["result_ptr"] = Written(value.shape, residual.dtype, "out_ptr" if in_place else None)
        results = _launch(line_forward_kernel, planned, call, pointers, "residual_stride")
    if residual is None:
        return [results["out_ptr"], results["stats_ptr"]]
    if save_out:
        return [results["result_ptr"], results["out_ptr"], results["stats_ptr"]]
    return [results["result_ptr"]]


def _out_pointer(value: Array, dtype: Any, so_far: Array | None, saves: bool) -> Any:
    """Return the argument for the output, given the output ``so_far`` and whether this pass saves it."""
    if so_far is None:
        return Written(value.shape, dtype) if saves else _unused(value)
    return Updated(so_far) if saves else so_far


def backward(call: Call[Array], out: Array, stats: Array, grad: Array) -> list[Array]:
    """Run the backward passes.

    Args:
        call: channels-last; with gamma if the forward pass added a residual.
        out: (N, *S, C), as :func:`forward` returned it.
        stats: (N, *S, 2), likewise.
        grad: (N, *S, C), the gradient of the result in the value's dtype.

    Returns:
        The gradients of query, key and value, and the float32 delta of every pixel, (N, *S, 1).
    """
    query, key, value = call.query, call.key, call.value
    launches = plan.backward_launches(_problem(call), device(), call.gamma is not None)
    gradients = {"dquery_ptr": query, "dkey_ptr": key, "dvalue_ptr": value}
    wide = dict(zip(gradients, plan.backward_partials(launches), strict=True))
    delta: Any = Written((*query.shape[:-1], 1), jnp.float32)  # the first pass writes it, the others read it
    results: dict[str, Array] = {}
    for planned in launches:
        pointers: dict[str, Any] = {
            "query_ptr": query,
            "key_ptr": key,
            "value_ptr": value,
            "out_ptr": out,
            "stats_ptr": stats,
            "grad_ptr": grad,
            "gamma_ptr": call.gamma,
            "delta_ptr": delta,
        }
        last = planned.constants["LAST"]
        several_tiles = not (planned.constants["ONE_QUERY_TILE"] and planned.constants["ONE_KEY_TILE"])
        for name, like in gradients.items():
            partial_name = f"partial_{name}"
            dtype = jnp.dtype(jnp.float32) if wide[name] else like.dtype
            so_far = results.get(partial_name)
            pointers[partial_name] = _partial_pointer(like, dtype, so_far, last, several_tiles)
            if last:
                takes_partial = so_far is not None and dtype == like.dtype
                pointers[name] = Written(like.shape, like.dtype, partial_name if takes_partial else None)
            else:
                pointers[name] = _unused(like)
        results = _launch(line_backward_kernel, planned, call, pointers, "grad_stride")
        delta = results.get("delta_ptr", delta)
    return [*(results[name] for name in gradients), delta]


def _partial_pointer(like: Array, dtype: Any, so_far: Array | None, last: bool, several_tiles: bool) -> Any:
    """Return the argument for a gradient's partial sum, given the sum ``so_far`` (None in the first pass)."""
    # The last pass does not write the sum if it has a single tile, or if the sum is in the gradient itself.
    only_read = last and (not several_tiles or dtype == like.dtype)
    if so_far is None:
        return _unused(like) if only_read else Written(like.shape, dtype)
    return so_far if only_read else Updated(so_far)


def _unused(like: Array) -> Written:
    """Return a one-element placeholder for a pointer that the kernel offsets but neither reads nor writes."""
    return Written((1,), like.dtype)


def _launch(
    kernel: Any, planned: plan.Launch, call: Call[Array], pointers: Mapping[str, Any], last_stride: str
) -> dict[str, Array]:
    """Launch a pass; ``last_stride`` names the stride parameter of the residual or of the upstream gradient."""
    query_channels, value_channels = call.query.shape[-1], call.value.shape[-1]
    arguments = {
        **pointers,
        "query_stride": query_channels,
        "key_stride": query_channels,
        "value_stride": value_channels,
        last_stride: value_channels,
        "length": planned.length,
        "inner": planned.inner,
        "scale": call.options.scale,
    }
    return launch(kernel, planned, arguments, device().capability)


def _problem(call: Call[Array]) -> plan.Problem:
    batch, *spatial, query_channels = call.query.shape
    value_channels = call.value.shape[-1]
    return plan.Problem(
        batch,
        tuple(spatial),
        call.options.axes,
        query_channels,
        value_channels,
        dtype_name(call.query),
        call.options.precision,
    )
