"""Time JAX implementations of the operator side by side under ``jax.jit``, after verifying their results."""

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

from ...engine.evaluation.jax_network import local_devices
from ...engine.runtime.provenance import provenance
from ...kernels import criss_cross_attention
from ...kernels.launches import plan
from ..failures import require_none, tolerated
from ..timing import Timing, input_sets
from .peers import ORACLES, Peer
from .rows import Rows, check_error, largest_error, result_row

CALLS = 5  # per clock reading, so that synchronisation adds little to the time


def triton(query: Array, key: Array, value: Array) -> Array:
    """Return this project's attention, computed by its Triton kernels."""
    return criss_cross_attention(query, key, value, channel_axis=-1, backend="triton")


def reference(query: Array, key: Array, value: Array) -> Array:
    """Return this project's attention, computed by its reference implementation."""
    return criss_cross_attention(query, key, value, channel_axis=-1, backend="reference")


def einsum(query: Array, key: Array, value: Array) -> Array:
    """Return the attention in its straightforward form: scores along both axes, one softmax, two weighted sums."""
    height = query.shape[1]
    columns = jnp.einsum("nywd,nxwd->nywx", query, key)
    columns = jnp.where(jnp.eye(height, dtype=bool)[:, None, :], -jnp.inf, columns)
    rows = jnp.einsum("nhyd,nhxd->nhyx", query, key)
    weights = jax.nn.softmax(jnp.concatenate([columns, rows], axis=-1), axis=-1)
    out = jnp.einsum("nywx,nxwc->nywc", weights[..., :height], value)
    return out + jnp.einsum("nhyx,nhxc->nhyc", weights[..., height:], value)


def non_local(query: Array, key: Array, value: Array) -> Array:
    """Return full attention; the value is split into slabs as wide as the query, as JAX's attention requires."""
    batch, height, width, channels = value.shape
    d = query.shape[-1]
    slabs = channels // d
    wide = (batch, height * width, slabs, d)
    queries, keys = (jnp.broadcast_to(x.reshape(batch, -1, 1, d), wide) for x in (query, key))
    out = jax.nn.dot_product_attention(queries, keys, value.reshape(batch, -1, slabs, d), scale=1.0)
    return out.reshape(value.shape)


PEERS = {
    "triton": Peer(triton, devices=("cuda",)),
    "reference": Peer(reference),
    "einsum": Peer(einsum),
    "non_local": Peer(non_local, attends="all"),
}


def time_in_jax(config: DictConfig, dtype: str, shape: list[int]) -> str:
    """Verify and time every peer on one shape; append the rows to a CSV file, plot them and return the table."""
    device = local_devices(config.device)[0]
    on_cpu = device.platform == "cpu"
    batch, *spatial = shape
    d, c = config.query_channels, config.value_channels
    problem = plan.Problem(batch, tuple(spatial), tuple(range(len(spatial))), d, c, dtype)
    generator = np.random.default_rng(config.seed)
    copies = 1 if on_cpu else input_sets(problem, config.cache_mib)
    sets = [_make_inputs(shape, d, c, dtype, device, generator) for _ in range(copies)]

    machine = {} if on_cpu else {"machine": device.device_kind}
    about = provenance(torch.device("cpu")) | machine | {"jax": jax.__version__}
    rows = Rows(about, Path(f"{config.output}_jax"))
    failures: list[str] = []
    peers = {name: peer for name, peer in PEERS.items() if ("cpu" if on_cpu else "cuda") in peer.devices}
    for name, peer in tqdm(peers.items(), desc=f"{shape} {dtype}", disable=None):
        for direction, call in _calls(peer.function).items():
            row = None
            with tolerated(f"{name}, {direction}", failures):
                error = _error_of(peer, sets[0], of_gradients=direction == "both")
                check_error(error, dtype)
                timing = _measure(lambda i, call=call: call(*sets[i % copies]), config.repeats)
                row = result_row(name, direction, problem, timing, error, config.seed)
            if row is not None:
                rows.add(row)
    table = rows.finish()
    require_none([line for line in failures if line.startswith("triton,")], table)
    return table


def _make_inputs(
    shape: list[int], d: int, c: int, dtype: str, device: Any, generator: np.random.Generator
) -> list[Array]:
    """Return query, key, value and upstream gradient (N, *S, channels); the scores have standard deviation 1.

    They are rounded here, so that the ground truth and the peers get the same inputs.
    """
    sizes = [(d, d**-0.25), (d, d**-0.25), (c, 1.0), (c, 1.0)]
    drawn = [generator.normal(0, scale, (*shape, width)) for width, scale in sizes]
    return [jax.device_put(jnp.asarray(array, dtype), device) for array in drawn]


def _calls(function: Callable[..., Array]) -> dict[str, Callable[..., Any]]:
    """Return the calls to time: forward, and forward with backward; under jit, backward cannot be timed alone."""

    def both(query: Array, key: Array, value: Array, upstream: Array) -> tuple[Array, tuple[Array, ...]]:
        out, pull = jax.vjp(function, query, key, value)
        return out, pull(upstream)

    return {"forward": jax.jit(lambda query, key, value, _: function(query, key, value)), "both": jax.jit(both)}


def _error_of(peer: Peer, inputs: list[Array], of_gradients: bool) -> float:
    """Return the largest error of the output and, optionally, the gradients, relative to the largest element.

    The ground truth is computed by torch in float64. Full attention is verified on one image.
    """
    if peer.attends == "all":
        inputs = [array[:1] for array in inputs]
    calls = _calls(peer.function)
    if of_gradients:
        out, gradients = calls["both"](*inputs)
    else:
        out, gradients = calls["forward"](*inputs), ()
    *arrays, upstream = map(_as_torch, inputs)
    arrays = [array.requires_grad_(of_gradients) for array in arrays]
    want = ORACLES[peer.attends](*arrays)
    wanted = [want.detach(), *(torch.autograd.grad(want, arrays, upstream) if of_gradients else ())]
    return largest_error(map(_as_torch, (out, *gradients)), wanted)


def _as_torch(array: Array) -> torch.Tensor:
    """Convert (N, H, W, C) to a float64 tensor (N, C, H, W)."""
    return torch.from_numpy(np.asarray(array, np.float64)).movedim(-1, 1)


def _measure(call: Callable[[int], Any], repeats: int) -> Timing:
    """Time ``call(i)`` for i = 0, 1, ..., reading the clock once per ``CALLS`` calls.

    Unlike in torch, these are wall times, which include the launches if those take longer than the calls.
    """
    jax.block_until_ready(call(0))
    spans, host = [], []
    for batch in range(max(repeats // CALLS, 3)):
        start = time.perf_counter()
        result = None
        for i in range(batch * CALLS, (batch + 1) * CALLS):
            result = call(i)
        host.append(1e6 * (time.perf_counter() - start) / CALLS)
        jax.block_until_ready(result)
        spans.append(1e6 * (time.perf_counter() - start) / CALLS)
    return Timing.of(spans, statistics.median(host))
