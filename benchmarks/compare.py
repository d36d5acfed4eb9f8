"""Times implementations side by side, and none that does not first give the right numbers."""

import csv
import datetime
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from ..engine.drawing.label_images import write_figure
from ..kernels import plan
from . import peers as peers

# Largest error against float64, of the largest element, that still counts as the same operator.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Timing(NamedTuple):
    """Microseconds per call: median, 20 and 80 percent quantiles, and what the CPU spends on it."""

    median_us: float
    p20_us: float
    p80_us: float
    host_us: float


def machine_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def provenance(device: torch.device) -> dict[str, str]:
    """What a published row says of where it comes from."""
    describe = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True)
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "none"
    return {
        "machine": machine_of(device),
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def make_inputs(shape: list[int], d: int, c: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """query, key, value and the gradient of the output, channels-last; scores of standard deviation 1."""
    batch, *spatial = shape
    sizes = [(d, d**-0.25), (d, d**-0.25), (c, 1.0), (c, 1.0)]
    arrays = [torch.randn(batch, *spatial, width, device=device) * scale for width, scale in sizes]
    query, key, value, upstream = (array.to(dtype).movedim(-1, 1) for array in arrays)
    return [*(array.requires_grad_() for array in (query, key, value)), upstream]


def largest_error(peer: peers.Peer, inputs: list[Tensor]) -> float:
    """Of the output and, where there is one, every gradient, against float64."""
    images = 1 if peer.attends == "all" else None  # full maps of a whole batch would not fit
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


def measure(call: Callable[[int], Any], repeats: int, device: torch.device) -> Timing:
    """Time ``call(i)``, i counting up, so that it can rotate through inputs."""
    for i in range(3):
        call(i)
    if device.type == "cpu":
        spans = []
        for i in range(repeats):
            start = time.perf_counter()
            call(i)
            spans.append(1e6 * (time.perf_counter() - start))
        host = float("nan")
    else:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for i, (start, end) in enumerate(events):
            start.record()
            call(i)
            end.record()
        host = 1e6 * (time.perf_counter() - begin) / repeats
        torch.cuda.synchronize()
        spans = [1e3 * start.elapsed_time(end) for start, end in events]
    low, *_, high = statistics.quantiles(spans, n=5)
    return Timing(statistics.median(spans), low, high, host)


def calls_of(peer: peers.Peer, sets: list[list[Tensor]]) -> dict[str, Callable[[int], Any]]:
    """What is timed: forward without a graph, backward alone, both."""

    def forward(i):
        with torch.no_grad():
            return peer.function(*sets[i % len(sets)][:3])

    calls = {"forward": forward}
    if peer.has_gradient:
        outputs = [peer.function(*arrays[:3]) for arrays in sets]

        def backward(i):
            *arrays, upstream = sets[i % len(sets)]
            return torch.autograd.grad(outputs[i % len(sets)], arrays, upstream, retain_graph=True)

        def both(i):
            *arrays, upstream = sets[i % len(sets)]
            return torch.autograd.grad(peer.function(*arrays), arrays, upstream)

        calls |= {"backward": backward, "both": both}
    if sets[0][0].is_cuda and peer.function is peers.triton:
        calls["forward, graph replay"] = _graph_replay(forward, len(sets))
    return calls


def _graph_replay(call: Callable[[int], Any], count: int) -> Callable[[int], Any]:
    """The call from a CUDA graph: without what the CPU spends on it."""
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
    """Peak of the allocator above what is there before the call."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call(0)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def compare(config: DictConfig, device: torch.device, dtype: torch.dtype, shape: list[int]) -> str:
    """Check and time every peer on one shape; append the rows, draw them, return the table."""
    torch.manual_seed(config.seed)
    problem = plan.Problem(
        shape[0],
        tuple(shape[1:]),
        tuple(range(len(shape) - 1)),
        config.query_channels,
        config.value_channels,
        str(dtype)[6:],
    )
    size = plan.least_cost(problem, "forward").bytes
    copies = 1 if device.type == "cpu" else max(2, -(-config.cache_mib * 2**20 // size))
    sets = [make_inputs(shape, config.query_channels, config.value_channels, dtype, device) for _ in range(copies)]
    machine = config.machines.get(machine_of(device))

    rows = []
    for name in tqdm(config.peers, desc=f"{shape} {problem.dtype}", disable=None):
        peer = peers.PEERS[name]
        try:
            error = largest_error(peer, sets[0])
            if not error < TOLERANCE[dtype]:
                raise ValueError(f"wrong by {error:.1e} of the largest element: not timed")
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
                "dtype": problem.dtype,
            }
            row |= {field: round(value, 1) for field, value in timing._asdict().items()}
            row["gb_per_s"] = round(cost.bytes / timing.median_us / 1e3, 1)
            row["tflops"] = round(cost.flops / timing.median_us / 1e6, 2)
            row["percent_of_floor"] = _percent_of_floor(cost, timing, machine)
            row["peak_mib"] = round(peak_mib(call, device), 1)
            row["error"] = f"{error:.1e}"
            rows.append(row | {"d": config.query_channels, "c": config.value_channels, "seed": config.seed})
    shown = table(rows)
    rows = [row | provenance(device) for row in rows]
    append_csv(Path(f"{config.output}.csv"), rows)
    draw(rows, Path(f"{config.output}_{'x'.join(map(str, shape))}_{problem.dtype}.png"))
    return shown


def _percent_of_floor(cost: plan.Cost, timing: Timing, machine: DictConfig | None) -> float | str:
    """How much of the time the machine needs at the least, by its memory or its products."""
    if machine is None:
        return ""
    floor_us = max(cost.bytes / machine.terabytes_per_second / 1e6, cost.flops / machine.teraflops / 1e6)
    return round(100 * floor_us / timing.median_us, 1)


def append_csv(path: Path, rows: list[dict]) -> None:
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def draw(rows: list[dict], path: Path) -> None:
    """Bars of the median, one group per pass, on a logarithmic axis."""
    if not rows:
        return
    directions = list(dict.fromkeys(row["pass"] for row in rows))
    figure = Figure(figsize=(7, 1 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    labels, widths, colours = [], [], []
    for index, direction in enumerate(directions):
        for row in sorted((row for row in rows if row["pass"] == direction), key=lambda row: row["median_us"]):
            labels.append(f"{row['peer']}, {direction}")
            widths.append(row["median_us"])
            colours.append(f"C{index}")
    bars = axes.barh(labels, widths, color=colours)
    axes.bar_label(bars, fmt=" %.0f")
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="median time (us)")
    axes.margins(x=0.15)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{rows[0]['shape']}, {rows[0]['dtype']}, {rows[0]['machine']}", fontsize=10)
    write_figure(path, figure, dpi=150)


def table(rows: list[dict]) -> str:
    """Rows as text, a column per field."""
    if not rows:
        return "nothing was measured"
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )
