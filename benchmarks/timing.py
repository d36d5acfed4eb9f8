"""Time calls on a device."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..kernels.launches import plan
from ..kernels.launches.cost import least_cost


class Timing(NamedTuple):
    """Microseconds per call.

    Attributes:
        median_us, p20_us, p80_us: the median and the 20th and 80th percentiles.
        host_us: the CPU time to launch a call on the GPU; NaN for calls on a CPU.
    """

    median_us: float
    p20_us: float
    p80_us: float
    host_us: float

    @classmethod
    def of(cls, spans: Sequence[float], host_us: float) -> "Timing":
        """Summarise the times of single calls, in microseconds."""
        low, *_, high = statistics.quantiles(spans, n=5, method="inclusive") if len(spans) > 1 else [*spans] * 2
        return cls(statistics.median(spans), low, high, host_us)


class Stream:
    """The current CUDA stream and the CPU's clock; tests replace it with a simulation."""

    def clock(self) -> float:
        """Return the CPU's time in microseconds."""
        return 1e6 * time.perf_counter()

    def hold(self, microseconds: float) -> None:
        """Queue a kernel that keeps the GPU busy for at least this long."""
        torch.cuda._sleep(int(3000 * microseconds))  # in clock cycles; no GPU reaches 3 GHz

    def mark(self) -> torch.cuda.Event:
        """Queue a time stamp."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def finish(self) -> None:
        """Wait until the GPU has done everything that is queued."""
        torch.cuda.synchronize()


# Calls queued behind one holding kernel: a GPU's launch queue holds about 1000 kernels.
BATCH = 10
LONGEST_HOLD_US = 200_000
# Timing stops after this many seconds if at least ``FEWEST`` times are known.
SECONDS, FEWEST = 3.0, 20


def measure(call: Callable[[int], Any], repeats: int, device: torch.device) -> Timing:
    """Time ``call(i)`` for i = 0, 1, ..., so that the call can cycle through inputs.

    On a GPU, calls are queued behind a kernel that holds the GPU until the CPU has launched them all, so that the times
    are the GPU's own, even for calls that take the CPU longer to launch.
    """
    for i in range(3):
        call(i)
    if device.type == "cuda":
        return measure_queued(call, repeats, Stream())
    spans: list[float] = []
    began = time.perf_counter()
    for i in range(repeats):
        start = time.perf_counter()
        call(i)
        spans.append(1e6 * (time.perf_counter() - start))
        if time.perf_counter() - began > SECONDS and len(spans) >= FEWEST:
            break
    return Timing.of(spans, float("nan"))


def measure_queued(call: Callable[[int], Any], repeats: int, stream: Stream) -> Timing:
    """Time a call that has been warmed up; see :func:`measure`.

    If the CPU took longer to launch a batch than the GPU was held, the batch is timed again behind a longer hold. A
    call that itself waits for the GPU outlasts every hold, so with ``LONGEST_HOLD_US`` the times are kept regardless.
    """
    spans, host = _queued_spans(call, repeats, stream)
    return Timing.of(spans, host)


def measure_in_turns(calls: Sequence[Callable[[int], Any]], repeats: int, stream: Stream) -> list[Timing]:
    """Time calls that take turns, ``repeats`` each, so that a change of the GPU's clocks affects them alike."""
    spans, host = _queued_spans(lambda i: calls[i % len(calls)](i // len(calls)), repeats * len(calls), stream)
    return [Timing.of(spans[k :: len(calls)], host) for k in range(len(calls))]


def _queued_spans(call: Callable[[int], Any], repeats: int, stream: Stream) -> tuple[list[float], float]:
    """Return the time of each call on the GPU, and the median time to launch one."""
    stream.finish()
    spans: list[float] = []
    host: list[float] = []
    began, hold = stream.clock(), 1000.0
    while len(spans) < repeats:
        numbers = range(len(spans), min(len(spans) + BATCH, repeats))
        stream.hold(hold)
        held = stream.mark()
        marks, launching = _launch(call, numbers, stream)
        is_hidden = not held.query()
        stream.finish()
        if not is_hidden and hold < LONGEST_HOLD_US:
            hold = min(max(2 * hold, 1.5 * launching), LONGEST_HOLD_US)
            continue
        host.append(launching / len(numbers))
        spans += _between(marks)
        if stream.clock() - began > 1e6 * SECONDS and len(spans) >= FEWEST:
            break
    return spans, statistics.median(host)


def measure_launched(call: Callable[[int], Any], repeats: int) -> Timing:
    """Time a whole network as a user runs it on a GPU, where launching it may take longer than computing it."""
    stream = Stream()
    for i in range(3):
        call(i)
    stream.finish()
    marks, launching = _launch(call, range(repeats), stream)
    stream.finish()
    return Timing.of(_between(marks), launching / repeats)


def _launch(call: Callable[[int], Any], numbers: range, stream: Stream) -> tuple[list[torch.cuda.Event], float]:
    """Launch calls; return the time stamps around each of them, and the CPU's launch time in microseconds."""
    start = stream.clock()
    marks = [stream.mark()]
    for i in numbers:
        call(i)
        marks.append(stream.mark())
    return marks, stream.clock() - start


def _between(marks: list[torch.cuda.Event]) -> list[float]:
    return [1e3 * before.elapsed_time(after) for before, after in itertools.pairwise(marks)]


def input_sets(problem: plan.Problem, cache_mib: float) -> int:
    """Return the number of input sets to cycle through so that a cache of ``cache_mib`` cannot hold them all."""
    return max(2, -(-int(cache_mib * 2**20) // least_cost(problem, "forward").bytes))
