"""Search for the fastest tiles: compile the candidates in parallel, time the sound ones, pin the fastest per range."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from ...kernels.launches import plan
from ...kernels.launches.problem import Device, Problem, Tile
from ..comparison.rows import check_error
from ..failures import first_line, tolerated
from .candidates import candidates
from .examine import Job, Needs, all_launches, timed_launches
from .log import BROKE, Log, described
from .table import Range, TunedTable


class Submits(Protocol):
    """Interface of whatever compiles jobs; see ``compilers.py``."""

    def submit(self, argument: Job) -> "Future[Needs | str]":
        """Compile a job in the background; the future returns its resource needs, or why it failed."""
        ...


class Measures(Protocol):
    """Interface to the passes of one range's call on a GPU; see ``trial.py``."""

    def error(self) -> float:
        """Return the largest error of the passes, relative to the largest element."""
        ...

    def median_us(self) -> float:
        """Return the median time of the passes in microseconds."""
        ...

    def is_usable(self) -> bool:
        """Return whether the GPU still works after a failure."""
        ...


class Timed(NamedTuple):
    """A candidate that computes the correct result, with its time."""

    median_us: float
    tile: Tile
    needs: Needs


class Search:
    """One run of the search.

    Args:
        device: the GPU to tune for.
        compilers: the processes that compile jobs in parallel.
        make_trial: prepares the call of a range on the GPU; None to compile only.
        seconds: the time limit.
        log: the log of all candidates.
        clock: returns the time in seconds.

    Attributes:
        failures: the ranges without a sound candidate, with reasons.
    """

    def __init__(
        self,
        device: Device,
        compilers: Submits,
        make_trial: Callable[[Range, Problem], Measures] | None,
        seconds: float,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.device, self.compilers, self.make_trial, self.log = device, compilers, make_trial, log
        self.clock, self.deadline = clock, clock() + seconds
        self.failures: list[str] = []

    def run(
        self, ranges: list[Range], batch: int, value_channels: int, table: TunedTable | None
    ) -> list[dict[str, Any]]:
        """Try the candidates of each range in order; return one record per range.

        Args:
            ranges: the ranges.
            batch, value_channels: batch size and number of value channels of the calls to time.
            table: the table in which the fastest tiles are pinned; None to compile only.

        Raises:
            TimeoutError: the time limit is reached; results up to then are in the table and the log.
            RuntimeError: a candidate made the GPU unusable for this process.
        """
        records: list[dict[str, Any]] = []
        queued: list[tuple[Problem, list[tuple[Tile, Future[Needs | str]]]]] = []
        for index, scope in enumerate(ranges):
            if table is not None:
                table.restore()
            for ahead in ranges[len(queued) : index + 2]:  # while one range is timed, the next one is compiled
                problem = problem_of(ahead, batch, value_channels)
                queued.append((problem, self._compile(ahead, problem)))
            problem, jobs = queued[index]
            timed = self._try_all(scope, problem, jobs)
            records.append(self._conclude(scope, problem, timed, jobs[0][0], table))
        return records

    def _compile(self, scope: Range, problem: Problem) -> list[tuple[Tile, "Future[Needs | str]"]]:
        """Queue the candidates of a range for compilation, the tile in use first."""
        found: list[tuple[Tile, Future[Needs | str]]] = []
        for tile in candidates(scope.kernel, problem, scope.length, self.device):
            launches = tuple(timed_launches(scope, problem, tile, self.device))
            found.append((tile, self.compilers.submit(Job(self.device, launches))))
        return found

    def _try_all(self, scope: Range, problem: Problem, jobs: list[tuple[Tile, "Future[Needs | str]"]]) -> list[Timed]:
        """Return the sound candidates of a range, with their times unless this run only compiles."""
        found: list[Timed] = []
        trial = None
        if self.make_trial is not None:
            with tolerated(str(scope), self.failures):
                trial = self.make_trial(scope, problem)
            if trial is None:
                return found
        for tile, job in jobs:
            needs = self._result(job)
            if needs.fault is None and self.log.has_broken(scope, tile):
                needs = needs._replace(fault=f"{BROKE} in an earlier run")
            if needs.fault is not None:
                self.log.add(scope, tile, needs, None, f"skipped: {needs.fault}")
            elif trial is None:
                self.log.add(scope, tile, needs, None, "would be timed")
                found.append(Timed(0.0, tile, needs))
            else:
                median, outcome = self._time(trial, scope, tile)
                self.log.add(scope, tile, needs, median, outcome)
                if outcome.startswith(BROKE):
                    raise RuntimeError(f"{scope}: {described(tile)} {outcome}. Run the command again to skip it")
                if median is not None:
                    found.append(Timed(median, tile, needs))
        return found

    def _time(self, trial: Measures, scope: Range, tile: Tile) -> tuple[float | None, str]:
        plan.use_table(self.device.name, [scope.row(tile)])
        try:
            check_error(trial.error(), scope.dtype)
            median = trial.median_us()
        except Exception as reason:  # launching raises many exception types
            return None, f"{'skipped' if trial.is_usable() else BROKE}: {first_line(reason)}"
        return median, f"{median:.1f} us"

    def _conclude(
        self, scope: Range, problem: Problem, timed: list[Timed], current: Tile, table: TunedTable | None
    ) -> dict[str, Any]:
        """Pin the fastest candidate that every kind of call can use; return the record of the range."""
        record: dict[str, Any] = {"range": str(scope), "sound": len(timed)}
        record |= {"tile": "", "median_us": "", "before_us": ""}
        if table is None and timed:
            return record | {"tile": "only compiled"}
        best = self._fastest(scope, problem, timed)
        if best is None or table is None:
            self.failures.append(f"{scope}: no candidate is sound")
            return record | {"tile": "none is sound"}
        pinned = [best]
        if best.tile.descriptors:  # arrays that descriptors cannot describe, and JAX, need another tile
            plain = self._fastest(scope, problem, [found for found in timed if not found.tile.descriptors])
            pinned += [] if plain is None else [plain]
        table.pin(scope, *((found.tile, found.median_us) for found in pinned))
        before = [f"{found.median_us:.1f}" for found in timed if found.tile == current]
        record |= {"tile": described(best.tile), "median_us": f"{best.median_us:.1f}"}
        return record | {"before_us": before[0] if before else ""}

    def _fastest(self, scope: Range, problem: Problem, timed: list[Timed]) -> Timed | None:
        """Return the fastest candidate that every kind of call can use, or None."""
        fastest_first = sorted(timed, key=lambda found: found.median_us)
        return next((found for found in fastest_first if self._suits_every_call(scope, problem, found)), None)

    def _suits_every_call(self, scope: Range, problem: Problem, found: Timed) -> bool:
        """Return whether the launches of every kind of call, not only the timed ones, are sound with a tile."""
        launches = all_launches(scope, problem, found.tile, self.device)
        jobs = [self.compilers.submit(Job(self.device, (launch,))) for launch in launches]
        for needs in map(self._result, jobs):
            if needs.fault is not None:
                outcome = f"not pinned, because of another kind of call: {needs.fault}"
                self.log.add(scope, found.tile, needs, found.median_us, outcome)
                return False
        return True

    def _result(self, job: "Future[Needs | str]") -> Needs:
        """Wait for a compilation job and return its needs; a failed job is treated as unsound."""
        left = self.deadline - self.clock()
        if left <= 0:
            raise TimeoutError("the time limit is reached")
        try:
            result = job.result(timeout=left)
        except TimeoutError:
            raise TimeoutError("the time limit is reached") from None
        return Needs(fault=result) if isinstance(result, str) else result


def problem_of(scope: Range, batch: int, value_channels: int) -> Problem:
    """Return the call to time: two passes over square images, along columns (strided) and rows (contiguous)."""
    spatial, d = (scope.length, scope.length), scope.query_channels
    # As in Trial: slices of one projection, and an output that the backward pass will read.
    aligned = d % 8 == 0 and value_channels % 8 == 0 and plan.kept_dtype(scope.dtype) == scope.dtype
    return Problem(batch, spatial, (0, 1), d, value_channels, scope.dtype, aligned=aligned)
