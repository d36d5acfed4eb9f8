"""Compile a candidate in the forms in which it would run, and report what it needs or why it is unsound.

This module imports neither torch nor triton, so that compiler processes start fast.
"""

import os
from typing import NamedTuple

from ...kernels import launch_set, plan
from ...kernels.launch_cases import Case, backward_cases, forward_cases
from ...kernels.tiles import Device, Problem, Tile
from .table import Range


class Job(NamedTuple):
    """A candidate to compile.

    Attributes:
        kernel: "forward" or "backward".
        problem: the call, along two axes of equal length.
        tile: the candidate.
        device: the GPU to compile for.
        every_form: whether to compile the launches of every kind of call, not only those that are timed.
    """

    kernel: str
    problem: Problem
    tile: Tile
    device: Device
    every_form: bool = False


class Needs(NamedTuple):
    """The most that any launch of a candidate needs.

    Attributes:
        registers: registers per thread.
        spilled: bytes of spilled registers per thread.
        shared: bytes of shared memory per block.
        fault: why the candidate is unsound, or None.
    """

    registers: int = 0
    spilled: int = 0
    shared: int = 0
    fault: str | None = None


def examine(job: Job) -> Needs:
    """Compile the launches of a candidate, up to the first unsound one."""
    os.environ.pop("TRITON_INTERPRET", None)  # Triton reads it on its first import, which follows
    from ...kernels.compiled import compile_case

    needs = Needs()
    for case in launches_of(job):
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


def launches_of(job: Job) -> list[Case]:
    """Return the launches to compile: the timed ones, which add a residual with a gamma, or those of every kind."""
    length, problem, device = job.problem.spatial[-1], job.problem, job.device
    here = Range(job.kernel, problem.dtype, length, length, length, problem.query_channels)
    plan.use_table(device.name, [here.row(job.tile)])
    if job.every_form:
        problems = [
            problem._replace(axes=(1,)),  # the only pass
            problem,
            problem._replace(spatial=(2, length, length), axes=(0, 1, 2)),  # the second axis is neither first nor last
        ]
        cases = [case for each in problems for case in launch_set.calls(each, device)]
    elif job.kernel == "forward":
        cases = forward_cases(problem, device, problem.dtype)
    else:
        cases = backward_cases(problem, device, has_gamma=True)
    return [
        case._replace(small=bool(device.arch))  # as with arrays of up to 2 GB
        for case in launch_set.distinct(cases)
        if case.kernel == job.kernel and case.launch.length == length
    ]


def compile_launch(job: tuple[Case, Device]) -> str | None:
    """Compile one launch for a GPU; return what is wrong with it, or None."""
    os.environ.pop("TRITON_INTERPRET", None)
    from ...kernels.compiled import compile_case

    case, device = job
    return launch_set.weakness(compile_case(case, device), case, device.shared_memory)
