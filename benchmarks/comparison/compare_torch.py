"""Time torch implementations of the operator side by side, after verifying their results.

An implementation with a wrong output or gradient is not timed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from ...engine.runtime.provenance import machine_of, provenance
from ...kernels.launches import plan
from ...kernels.launches.cost import least_cost
from ..failures import require_none, tolerated
from ..timing import Timing, input_sets, measure
from . import peers
from .rows import Rows, check_error, largest_error, result_row


def make_inputs(shape: list[int], d: int, c: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return query, key, value and upstream gradient, channels-last; the scores have standard deviation 1."""
    batch, *spatial = shape
    sizes = [(d, d**-0.25), (d, d**-0.25), (c, 1.0), (c, 1.0)]
    arrays = [torch.randn(batch, *spatial, width, device=device) * scale for width, scale in sizes]
    query, key, value, upstream = (array.to(dtype).movedim(-1, 1) for array in arrays)
    return [*(array.requires_grad_() for array in (query, key, value)), upstream]


def error_of(peer: peers.Peer, inputs: list[Tensor], of_gradients: bool) -> float:
    """Return the largest error of the output or of the gradients against float64, relative to the largest element."""
    images = 1 if peer.attends == "all" else None  # the full maps of a whole batch would not fit
    *arrays, upstream = (array[:images] for array in inputs)
    results = []
    for function, dtype in ((peer.function, upstream.dtype), (peers.ORACLES[peer.attends], torch.float64)):
        leaves = [array.detach().to(dtype).requires_grad_() for array in arrays]
        with torch.set_grad_enabled(of_gradients):
            out = function(*leaves)
        results.append(torch.autograd.grad(out, leaves, upstream.to(dtype)) if of_gradients else [out])
    return largest_error(*results)


Inputs = list[list[Tensor]]
Timed = Callable[[int], Any]


def _forward(peer: peers.Peer, sets: Inputs) -> Timed:
    """Return a function that runs the forward pass without autograd."""

    def forward(i: int) -> Tensor:
        with torch.no_grad():
            return peer.function(*sets[i % len(sets)][:3])

    return forward


def _backward(peer: peers.Peer, sets: Inputs) -> Timed:
    """Return a function that runs only the backward pass."""
    outputs = [peer.function(*arrays[:3]) for arrays in sets]

    def backward(i: int) -> tuple[Tensor, ...]:
        *arrays, upstream = sets[i % len(sets)]
        return torch.autograd.grad(outputs[i % len(sets)], arrays, upstream, retain_graph=True)

    return backward


def _both(peer: peers.Peer, sets: Inputs) -> Timed:
    """Return a function that runs the forward pass, then the backward pass."""

    def both(i: int) -> tuple[Tensor, ...]:
        *arrays, upstream = sets[i % len(sets)]
        return torch.autograd.grad(peer.function(*arrays), arrays, upstream)

    return both


def passes_of(peer: peers.Peer, device: torch.device) -> dict[str, Callable[[peers.Peer, Inputs], Timed]]:
    """Return, for each pass of a peer, the function that prepares it for timing; any of them may fail on its own."""
    passes: dict[str, Callable[[peers.Peer, Inputs], Timed]] = {"forward": _forward}
    if peer.has_gradient:
        passes |= {"backward": _backward, "both": _both}
    if device.type == "cuda" and peer.function is peers.triton:
        passes["forward, graph replay"] = lambda peer, sets: _graph_replay(_forward(peer, sets), len(sets))
    return passes


def _graph_replay(call: Callable[[int], Any], count: int) -> Callable[[int], Any]:
    """Return the call as a replay of CUDA graphs, which avoids the launch overhead of single kernels on the CPU."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(3):
            call(i)
    torch.cuda.current_stream().wait_stream(stream)
    graphs = [torch.cuda.CUDAGraph() for _ in range(count)]
    for i, graph in enumerate(graphs):
        with torch.cuda.graph(graph):
            call(i)
    return lambda i: graphs[i % count].replay()


def peak_mib(call: Callable[[int], Any], device: torch.device) -> float:
    """Return how much the call increases the allocator's peak, in MiB; NaN on a CPU."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call(0)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def time_in_torch(config: DictConfig, device: torch.device, dtype: str, shape: list[int]) -> str:
    """Verify and time every peer on one shape; append the rows to a CSV file, plot them and return the table."""
    if unknown := [name for name in config.peers if name not in peers.PEERS]:
        raise ValueError(f"peers contains {', '.join(map(str, unknown))}: choose some of {', '.join(peers.PEERS)}")
    torch.manual_seed(config.seed)
    batch, *spatial = shape
    d, c = config.query_channels, config.value_channels
    problem = plan.Problem(batch, tuple(spatial), tuple(range(len(spatial))), d, c, dtype)
    copies = 1 if device.type == "cpu" else input_sets(problem, config.cache_mib)
    sets = [make_inputs(shape, d, c, getattr(torch, dtype), device) for _ in range(copies)]
    machine = config.machines.get(machine_of(device))

    rows = Rows(provenance(device), Path(str(config.output)))
    failures: list[str] = []
    for name in tqdm(config.peers, desc=f"{shape} {dtype}", disable=None):
        peer = peers.PEERS[name]
        if device.type not in peer.devices:
            continue
        for direction, prepare in passes_of(peer, device).items():
            row = None
            with tolerated(f"{name}, {direction}", failures):
                error = error_of(peer, sets[0], of_gradients=direction in ("backward", "both"))
                check_error(error, dtype)
                call = prepare(peer, sets)
                timing = measure(call, config.repeats, device)
                columns = {
                    "percent_of_floor": _percent_of_floor(problem, direction, timing, machine),
                    "peak_mib": round(peak_mib(call, device), 1),
                }
                row = result_row(name, direction, problem, timing, error, config.seed, **columns)
            call = None  # frees the tensors that the pass has saved
            if row is not None:
                rows.add(row)
    table = rows.finish()
    if device.type == "cuda":  # not every peer supports every shape, but the kernels must
        require_none([line for line in failures if line.startswith("triton,")], table)
    return table


def _percent_of_floor(problem: plan.Problem, direction: str, timing: Timing, machine: DictConfig | None) -> float | str:
    """Return the roofline time, from the machine's bandwidth and FLOP rate, as a percentage of the median."""
    if machine is None:
        return ""
    cost = least_cost(problem, direction.split(",")[0])
    floor_us = max(cost.bytes / machine.terabytes_per_second / 1e6, cost.flops / machine.teraflops / 1e6)
    return round(100 * floor_us / timing.median_us, 1)
