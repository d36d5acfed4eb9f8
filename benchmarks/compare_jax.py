"""The operator in JAX beside its alternatives, every one under ``jax.jit`` and checked before it is timed."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from omegaconf import DictConfig
from tqdm import tqdm

from ..engine.evaluation.jax_network import local_devices
from ..kernels import criss_cross_attention, plan
from . import peers as benchmark_peers
from .compare import TOLERANCE, Timing, append_csv, draw, provenance, table

CALLS = 5  # per sample of the clock, so that waiting for the device counts little


def triton(query: Array, key: Array, value: Array) -> Array:
    return criss_cross_attention(query, key, value, channel_axis=-1, backend="triton")


def reference(query: Array, key: Array, value: Array) -> Array:
    return criss_cross_attention(query, key, value, channel_axis=-1, backend="reference")


def einsum(query: Array, key: Array, value: Array) -> Array:
    """What one would write: scores of both axes side by side, one softmax, two weighted sums."""
    height = query.shape[1]
    columns = jnp.einsum("nywd,nxwd->nywx", query, key)
    columns = jnp.where(jnp.eye(height, dtype=bool)[:, None, :], -jnp.inf, columns)
    rows = jnp.einsum("nhyd,nhxd->nhyx", query, key)
    weights = jax.nn.softmax(jnp.concatenate([columns, rows], axis=-1), axis=-1)
    out = jnp.einsum("nywx,nxwc->nywc", weights[..., :height], value)
    return out + jnp.einsum("nhyx,nhxc->nhyc", weights[..., height:], value)


def non_local(query: Array, key: Array, value: Array) -> Array:
    """Every pixel to every pixel; the value in slabs as wide as the query, which is what JAX's attention takes."""
    batch, height, width, channels = value.shape
    d = query.shape[-1]
    slabs = channels // d
    heads = [jnp.broadcast_to(x.reshape(batch, -1, 1, d), (batch, height * width, slabs, d)) for x in (query, key)]
    out = jax.nn.dot_product_attention(*heads, value.reshape(batch, -1, slabs, d), scale=1.0)
    return out.reshape(value.shape)


PEERS = {
    "triton": (triton, "cross"),
    "reference": (reference, "cross"),
    "einsum": (einsum, "cross"),
    "non_local": (non_local, "all"),
}


def compare(config: DictConfig, dtype: torch.dtype, shape: list[int]) -> str:
    """Check and time every peer on one shape; append the rows, draw them, return the table."""
    device = local_devices(config.device)[0]
    name = str(dtype)[6:]
    batch, *spatial = shape
    d, c = config.query_channels, config.value_channels
    problem = plan.Problem(batch, tuple(spatial), tuple(range(len(spatial))), d, c, name)
    generator = np.random.default_rng(config.seed)
    drawn = [generator.normal(0, scale, (*shape, width)) for width, scale in ((d, d**-0.25),) * 2 + ((c, 1),) * 2]
    # Rounded once, so that the oracle sees what the peers see.
    inputs = [jax.device_put(jnp.asarray(array, name), device) for array in drawn]

    rows = []
    for peer, (function, attends) in tqdm(PEERS.items(), desc=f"{shape} {name}", disable=None):
        try:
            error = _largest_error(function, attends, inputs)
            if not error < TOLERANCE[dtype]:
                raise ValueError(f"wrong by {error:.1e} of the largest element: not timed")
        except (ValueError, RuntimeError, NotImplementedError) as reason:
            tqdm.write(f"{peer}: not measured. {str(reason).splitlines()[0]}")
            continue
        for direction, call in _calls(function).items():
            timing = _measure(lambda call=call: call(*inputs), config.repeats)
            cost = plan.least_cost(problem, direction)
            row = {"peer": peer, "pass": direction, "shape": "x".join(map(str, shape)), "dtype": name}
            row |= {field: round(value, 1) for field, value in timing._asdict().items()}
            row["gb_per_s"] = round(cost.bytes / timing.median_us / 1e3, 1)
            row["tflops"] = round(cost.flops / timing.median_us / 1e6, 2)
            rows.append(row | {"error": f"{error:.1e}", "d": d, "c": c, "seed": config.seed})
    shown = table(rows)
    machine = {"machine": device.device_kind, "jax": jax.__version__}
    rows = [row | provenance(torch.device("cpu")) | machine for row in rows]
    append_csv(Path(f"{config.output}_jax.csv"), rows)
    draw(rows, Path(f"{config.output}_jax_{'x'.join(map(str, shape))}_{name}.png"))
    return shown


def _calls(function: Callable[..., Array]) -> dict[str, Callable[..., Any]]:
    """Forward alone, and forward and backward: under jit there is no backward alone."""

    def both(query, key, value, upstream):
        out, pull = jax.vjp(function, query, key, value)
        return out, pull(upstream)

    return {"forward": jax.jit(lambda query, key, value, _: function(query, key, value)), "both": jax.jit(both)}


def _largest_error(function: Callable[..., Array], attends: str, inputs: list[Array]) -> float:
    """Of output and gradients, against torch in float64, of the largest element; one image for full attention."""
    if attends == "all":
        inputs = [array[:1] for array in inputs]
    out, gradients = _calls(function)["both"](*inputs)
    leaves = [torch.from_numpy(np.asarray(array, np.float64)).movedim(-1, 1) for array in inputs]
    *arrays, upstream = leaves
    arrays = [array.requires_grad_() for array in arrays]
    want = benchmark_peers.ORACLES[attends](*arrays)
    wanted = [want.detach(), *torch.autograd.grad(want, arrays, upstream)]
    errors = []
    for ours, array in zip((out, *gradients), wanted, strict=True):
        got = torch.from_numpy(np.asarray(ours, np.float64)).movedim(-1, 1)
        errors.append(((got - array).abs().max() / array.abs().max()).item())
    return max(errors)


def _measure(call: Callable[[], Any], repeats: int) -> Timing:
    jax.block_until_ready(call())
    spans, host = [], []
    for _ in range(max(repeats // CALLS, 3)):
        start = time.perf_counter()
        for _ in range(CALLS):
            result = call()
        host.append(1e6 * (time.perf_counter() - start) / CALLS)
        jax.block_until_ready(result)
        spans.append(1e6 * (time.perf_counter() - start) / CALLS)
    low, *_, high = statistics.quantiles(spans, n=5)
    return Timing(statistics.median(spans), low, high, statistics.median(host))
