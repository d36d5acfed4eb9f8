"""Compile the launches of a candidate, and report what they need or why they are unsound.

This module imports neither torch nor triton, so that compiler processes start fast.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from ...kernels.launches import launch_set, plan, tile_tables
from ...kernels.launches.launch_cases import Case, backward_cases, forward_cases
from .table import Range


class Job(NamedTuple):
    """Launches to compile.

    Attributes:
        device: the GPU to compile for.
        launches: the launches.
    """

    device: plan.Device
    launches: tuple[Case, ...]


class Needs(NamedTuple):
    """The resources that a job needs: the maximum over its launches.

    Attributes:
        registers: registers per thread.
        spilled: bytes of spilled registers per thread.
        shared: bytes of shared memory per block.
        fault: why the job is unsound, or None.
    """

    registers: int = 0
    spilled: int = 0
    shared: int = 0
    fault: str | None = None


def examine(job: Job) -> Needs:
    """Compile the launches of a job, up to the first unsound one."""
    os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is first imported, below
    from ...kernels.launches.compiled import compile_case

    needs = Needs()
    for case in job.launches:
        report = compile_case(case, job.device)
        needs = Needs(
            max(needs.registers, report.registers),
            max(needs.spilled, report.stack),
            max(needs.shared, report.shared),
            launch_set.weakness(report, case, job.device.shared_memory),
        )
        if needs.fault is not None:
            break
    return needs


def timed_launches(scope: Range, problem: plan.Problem, tile: plan.Tile, device: plan.Device) -> list[Case]:
    """Return the launches of :class:`.trial.Trial` for a tile."""

    def planned() -> list[Case]:
        if scope.kernel == "forward":
            return forward_cases(problem, device, problem.dtype)
        return backward_cases(problem, device, has_gamma=True, joined=True)

    return _with_tile(planned, scope, tile, device)


def all_launches(scope: Range, problem: plan.Problem, tile: plan.Tile, device: plan.Device) -> list[Case]:
    """Return the launches that use a tile, over all kinds of call."""
    length = scope.length
    problems = [
        problem._replace(axes=(1,)),  # the only pass
        problem,
        problem._replace(spatial=(2, length, length), axes=(0, 1, 2)),  # the second axis is neither first nor last
    ]

    def planned() -> list[Case]:
        return [case for sizes in problems for case in launch_set.calls(sizes, device, "float32")]

    cases = _with_tile(planned, scope, tile, device)
    # Calls whose arrays descriptors cannot describe do not use a tile with descriptors.
    return [
        case
        for case in cases
        if case.kernel == scope.kernel and case.launch.length == length and case.launch.tile == tile
    ]


def _with_tile(planned: Callable[[], list[Case]], scope: Range, tile: plan.Tile, device: plan.Device) -> list[Case]:
    """Return the distinct launches that are planned while a tile is pinned."""
    rows = tile_tables.load_table(device.name)
    plan.use_table(device.name, [scope.row(tile)])
    try:
        # As for arrays below 2 GiB, on which Triton specialises only for AMD GPUs.
        return [case._replace(small=bool(device.arch)) for case in launch_set.distinct(planned())]
    finally:
        plan.use_table(device.name, rows)
