"""Time calls on a device, and record the provenance of measurements."""

import datetime
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """Microseconds per call.

    Attributes:
        median_us, p20_us, p80_us: the median and the 20th and 80th percentiles.
        host_us: the time that the CPU spends on launching a call on the GPU.
    """

    median_us: float
    p20_us: float
    p80_us: float
    host_us: float


def measure(call: Callable[[int], Any], repeats: int, device: torch.device) -> Timing:
    """Time ``call(i)`` for i = 0, 1, ..., so that the call can cycle through inputs."""
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


def machine_of(device: torch.device) -> str:
    """Return the name of the GPU, or the number of threads on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def provenance(device: torch.device) -> dict[str, str]:
    """Return the machine, versions, commit and date that are recorded in every published row."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
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
