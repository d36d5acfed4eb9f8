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

from ..kernels import plan
from . import peers
from .comparison_rows import TOLERANCE, save_rows
from .timing import Timing, machine_of, measure, provenance


def make_inputs(shape: list[int], d: int, c: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return query, key, value and upstream gradient, channels-last; the scores have standard deviation 1."""
    batch, *spatial = shape
    sizes = [(d, d**-0.25), (d, d**-0.25), (c, 1.0), (c, 1.0)]
    arrays = [torch.randn(batch, *spatial, width, device=device) * scale for width, scale in sizes]
    query, key, value, upstream = (array.to(dtype).movedim(-1, 1) for array in arrays)
    return [*(array.requires_grad_() for array in (query, key, value)), upstream]


def largest_error(peer: peers.Peer, inputs: list[Tensor]) -> float:
    """Return the largest error of the output and any gradients against float64, relative to the largest element."""
    images = 1 if peer.attends == "all" else None  # the full maps of a whole batch would not fit
    *arrays, upstream = (array[:images] for array in inputs)
    results = []
    for function, dtype in ((peer.function, upstream.dtype), (peers.ORACLES[peer.attends], torch.float64)):
        leaves = [array.detach().to(dtype).requires_grad_() for array in arrays]
        with torch.set_grad_enabled(peer.has_gradient):
            out = function(*leaves)
        gradients = torch.autograd.grad(out, leaves, upstream.to(dtype)) if peer.has_gradient else ()
        results.append([out.detach(), *gradients])
    errors = [((ours - want).abs().max() / want.abs().max()).item() for ours, want in zip(*results, strict=True)]
    return max(errors)


def calls_of(peer: peers.Peer, sets: list[list[Tensor]]) -> dict[str, Callable[[int], Any]]:
    """Return the calls to time: forward without autograd, backward alone, and both."""

    def forward(i: int) -> Tensor:
        with torch.no_grad():
            return peer.function(*sets[i % len(sets)][:3])

    calls: dict[str, Callable[[int], Any]] = {"forward": forward}
    if peer.has_gradient:
        outputs = [peer.function(*arrays[:3]) for arrays in sets]

        def backward(i: int) -> tuple[Tensor, ...]:
            *arrays, upstream = sets[i % len(sets)]
            return torch.autograd.grad(outputs[i % len(sets)], arrays, upstream, retain_graph=True)

        def both(i: int) -> tuple[Tensor, ...]:
            *arrays, upstream = sets[i % len(sets)]
            return torch.autograd.grad(peer.function(*arrays), arrays, upstream)

        calls |= {"backward": backward, "both": both}
    if sets[0][0].is_cuda and peer.function is peers.triton:
        calls["forward, graph replay"] = _graph_replay(forward, len(sets))
    return calls


def _graph_replay(call: Callable[[int], Any], count: int) -> Callable[[int], Any]:
    """Return the call as replays of CUDA graphs, which have no launch overhead on the CPU."""
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
    torch.manual_seed(config.seed)
    problem = plan.Problem(
        shape[0],
        tuple(shape[1:]),
        tuple(range(len(shape) - 1)),
        config.query_channels,
        config.value_channels,
        dtype,
    )
    size = plan.least_cost(problem, "forward").bytes
    copies = 1 if device.type == "cpu" else max(2, -(-config.cache_mib * 2**20 // size))
    widths = config.query_channels, config.value_channels
    sets = [make_inputs(shape, *widths, getattr(torch, dtype), device) for _ in range(copies)]
    machine = config.machines.get(machine_of(device))

    rows = []
    for name in tqdm(config.peers, desc=f"{shape} {dtype}", disable=None):
        peer = peers.PEERS[name]
        try:
            error = largest_error(peer, sets[0])
            if not error < TOLERANCE[dtype]:
                raise ValueError(f"the error is {error:.1e} of the largest element, above the tolerance")
            calls = calls_of(peer, sets)
        except (ValueError, RuntimeError, NotImplementedError) as reason:
            tqdm.write(f"{name}: not measured. {str(reason).splitlines()[0]}")
            continue
        for direction, call in calls.items():
            timing = measure(call, config.repeats, device)
            cost = plan.least_cost(problem, direction.split(",")[0])
            row = {
                "peer": name,
                "pass": direction,
                "shape": "x".join(map(str, shape)),
                "dtype": dtype,
            }
            row |= {field: round(value, 1) for field, value in timing._asdict().items()}
            row["gb_per_s"] = round(cost.bytes / timing.median_us / 1e3, 1)
            row["tflops"] = round(cost.flops / timing.median_us / 1e6, 2)
            row["percent_of_floor"] = _percent_of_floor(cost, timing, machine)
            row["peak_mib"] = round(peak_mib(call, device), 1)
            row["error"] = f"{error:.1e}"
            rows.append(row | {"d": config.query_channels, "c": config.value_channels, "seed": config.seed})
    return save_rows(rows, provenance(device), Path(str(config.output)))


def _percent_of_floor(cost: plan.Cost, timing: Timing, machine: DictConfig | None) -> float | str:
    """Return the roofline time from the machine's bandwidth and arithmetic throughput, in percent of the median."""
    if machine is None:
        return ""
    floor_us = max(cost.bytes / machine.terabytes_per_second / 1e6, cost.flops / machine.teraflops / 1e6)
    return round(100 * floor_us / timing.median_us, 1)
