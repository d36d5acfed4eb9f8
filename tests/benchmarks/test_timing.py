"""Times on a GPU leave out what the CPU takes to launch a call, shown on a simulated stream."""

import math

import pytest
import torch

from ccnet.benchmarks import timing
from ccnet.kernels.launches import plan
from ccnet.kernels.launches.cost import least_cost


class Mark:
    def __init__(self, stream, time):
        self.stream, self.time = stream, time

    def query(self):
        return self.stream.now >= self.time

    def elapsed_time(self, later):
        return (later.time - self.time) / 1e3


class Simulated:
    """A CPU clock and a GPU that works off its queue, in microseconds."""

    def __init__(self, launching, computing, waits=False):
        self.launching, self.computing, self.waits = launching, computing, waits
        self.now = self.end = 0.0
        self.held = []

    def clock(self):
        return self.now

    def _queue(self, microseconds):
        self.end = max(self.end, self.now) + microseconds

    def hold(self, microseconds):
        self.held.append(microseconds)
        self._queue(microseconds)

    def mark(self):
        self._queue(0)
        return Mark(self, self.end)

    def finish(self):
        self.now = max(self.now, self.end)

    def call(self, i):
        self.now += self.launching
        self._queue(self.computing)
        if self.waits:
            self.finish()


def test_a_timing_has_the_median_and_the_20th_and_80th_percentiles():
    assert timing.Timing.of([*range(11, 0, -1)], 7.5) == (6, 3, 9, 7.5)
    assert timing.Timing.of([5.0], 1.0) == (5, 5, 5, 1)


@pytest.mark.parametrize(("seconds", "counted"), [(1e-3, 40), (0.1, 31), (1.0, timing.FEWEST)])
def test_calls_on_a_cpu_are_timed_one_by_one_after_a_warm_up(monkeypatch, seconds, counted):
    now, calls = [0.0], []

    def call(i):
        calls.append(i)
        now[0] += 60 if len(calls) <= 3 else seconds  # the first calls may compile

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    found = timing.measure(call, 40, torch.device("cpu"))
    assert calls == [0, 1, 2, *range(counted)]
    assert found[:3] == (pytest.approx(1e6 * seconds),) * 3 and math.isnan(found.host_us)


def test_calls_that_take_turns_are_timed_apart():
    stream = Simulated(5, computing=0)
    seen = []

    def call(microseconds):
        def run(i):
            seen.append((microseconds, i))
            stream._queue(microseconds)

        return run

    found = timing.measure_in_turns([call(30), call(70)], 25, stream)
    assert [each.median_us for each in found] == [pytest.approx(30), pytest.approx(70)]
    assert seen == [(microseconds, i) for i in range(25) for microseconds in (30, 70)]


@pytest.mark.parametrize("launching", [5, 50, 190, 4000])
def test_the_time_to_launch_does_not_count(launching):
    stream = Simulated(launching, computing=30)
    found = timing.measure_queued(stream.call, 25, stream)
    assert found.median_us == pytest.approx(30)
    assert found.p20_us == pytest.approx(30) and found.p80_us == pytest.approx(30)
    assert found.host_us == pytest.approx(launching)


def test_a_call_that_waits_for_the_gpu_is_timed_all_the_same():
    stream = Simulated(launching=100, computing=30, waits=True)
    assert timing.measure_queued(stream.call, 25, stream).median_us == pytest.approx(130)
    assert max(stream.held) == timing.LONGEST_HOLD_US


def test_a_slow_call_is_timed_less_often():
    stream = Simulated(launching=10, computing=1e6)
    counted = []
    timing.measure_queued(lambda i: (counted.append(i), stream.call(i)), 1000, stream)
    assert len(counted) == timing.FEWEST


def test_inputs_together_exceed_the_cache():
    problem = plan.Problem(1, (97, 97), (0, 1), 64, 512, "bfloat16")
    size = least_cost(problem, "forward").bytes
    sets = timing.input_sets(problem, 256)
    assert (sets - 1) * size < 256 * 2**20 <= sets * size
    assert timing.input_sets(problem._replace(batch=64), 256) == 2


@pytest.mark.parametrize("dtype", plan.ITEM_SIZE)
def test_the_least_cost_of_memory_is_one_transfer_of_each_array(dtype):
    """The forward pass reads query, key and value, and writes the output and two statistics in float32."""
    arrays = [torch.empty(2, 3, 5, channels, dtype=getattr(torch, dtype)) for channels in (8, 8, 32, 32)]
    statistics = torch.empty(2, 3, 5, 2)
    problem = plan.Problem(2, (3, 5), (0, 1), 8, 32, dtype)
    assert least_cost(problem, "forward").bytes == sum(array.nbytes for array in (*arrays, statistics))
