"""Fill Triton's cache in parallel with the launches that tests and benchmarks would compile one by one."""

import os

import torch
from omegaconf import DictConfig

from ...kernels.launches import launch_set, plan
from ...kernels.launches.launch_cases import Case
from .compilers import Compilers
from .examine import Job, examine

# (N, *S) at D = 64, C = 512: those of tests/kernels/test_gpu.py, in every dtype, and of the comparison, in bfloat16.
TEST_SHAPES = [(2, 97, 97), (1, 128, 256), (1, 129, 129), (2, 17, 257), (1, 64, 48), (1, 1, 100)]
TEST_SHAPES += [(1, 4, 33, 20), (3, 1025)]
SHAPES = [(8, 97, 97), (8, 128, 256), (1, 97, 97)]


def compile_ahead(config: DictConfig, device: torch.device) -> str:
    """Compile the launches of the GPU tests and of the comparison; return a message with their number.

    Raises:
        ValueError: the device is not a GPU, or a launch is unsound; the others are compiled nevertheless.
    """
    if device.type != "cuda":
        raise ValueError(
            f"mode=compile fills Triton's cache for a GPU, but the device is {device}: make compile-all "
            "compiles every launch without one"
        )
    from ...kernels.torch_ops.devices import device_of

    gpu = device_of(torch.cuda.current_device())
    launches = wanted(gpu)
    with Compilers(examine, len(os.sched_getaffinity(0)), config.tune.compile_seconds) as compilers:
        jobs = [compilers.submit(Job(gpu, (case,))) for case in launches]
        results = [job.result() for job in jobs]
    faults = [result if isinstance(result, str) else result.fault for result in results]
    unsound = [f"{case.kernel}, {fault}: {case}" for case, fault in zip(launches, faults, strict=True) if fault]
    if unsound:
        raise ValueError("\n".join([f"{len(unsound)} of {len(launches)} launches are unsound:", *unsound]))
    return f"{len(launches)} launches compiled"


def wanted(gpu: plan.Device) -> list[Case]:
    """Return the distinct launches to compile for a GPU."""
    calls = [(shape, dtype) for shape in TEST_SHAPES for dtype in ("bfloat16", "float16", "float32")]
    calls += [(shape, "bfloat16") for shape in SHAPES]
    problems = [
        plan.Problem(batch, tuple(spatial), tuple(range(len(spatial))), 64, 512, dtype, aligned=True)
        for (batch, *spatial), dtype in calls
    ]
    cases = [
        case
        for problem in problems
        for case in launch_set.calls(problem, gpu)
        # Only in bfloat16 are gradients in one array tested. In float16, one of these launches spills.
        if problem.dtype == "bfloat16" or not case.launch.constants.get("JOINED")
    ]
    # float32 takes longest to compile, so it comes first: no process is left with a long job at the end.
    return sorted(launch_set.distinct(cases), key=lambda case: case.pointers["query_ptr"] != "float32")
