"""The launches that must compile well with every supported Triton version, and a command that compiles them all.

``python -m ccnet.kernels.launch_set`` needs only Triton: no torch and no GPU.
"""

import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from . import plan

GPUS = {
    "sm_80": plan.Device("A100", (8, 0), 108, 166912),
    "sm_90": plan.Device("H100", (9, 0), 132, 232448),
    "sm_100": plan.Device("B200", (10, 0), 148, 232448),
}
# (dtype, D, lengths) at the paper's C = 512. The lengths cover every branch of the tile rule: crops of 769, 1025 and
# 2049 give lines of 97, 129 and 257 pixels; 257 is tiled like 129.
SHAPES = [
    ("bfloat16", 64, (64, 97, 129, 200, 256)),
    ("bfloat16", 128, (97,)),
    ("float32", 64, (97,)),
    ("float32", 128, (97,)),
]


def launches(gpu: str, fused: tuple[bool, ...] = (True, False)) -> list[tuple[str, plan.Launch, str]]:
    """Return each distinct (kernel, launch, dtype) of the last pass, which does the most work, and of all at length 97.

    Args:
        gpu: a name in `GPUS`.
        fused: forward variants at length 97, with the residual (True) or without; other lengths always have it.
    """
    shapes = [*SHAPES, ("float16", 64, (97,))] if gpu == "sm_90" else SHAPES
    found: dict[tuple[Any, ...], tuple[str, plan.Launch, str]] = {}
    for device, (dtype, query_channels, lengths) in itertools.product(_with_tables(gpu), shapes):
        for length in lengths:
            problem = plan.Problem(8, (length, length), (0, 1), query_channels, 512, dtype)
            for kernel, launch in _passes(problem, device, fused if length == 97 else (True,)):
                constants = tuple(sorted(launch.constants.items()))
                found[kernel, dtype, constants, launch.num_warps, launch.num_stages] = (kernel, launch, dtype)
    return list(found.values())


def _with_tables(gpu: str) -> list[plan.Device]:
    """Return the GPU without a table, for which the rule applies, and every GPU of its capability with a table."""
    headers = [json.loads(path.read_text()) for path in plan.CONFIGS.glob("*.json")]
    names = [header["device"] for header in headers if tuple(header["capability"]) == GPUS[gpu].capability]
    return [GPUS[gpu], *(GPUS[gpu]._replace(name=name) for name in names)]


def _passes(problem: plan.Problem, device: plan.Device, fused: tuple[bool, ...]) -> Iterator[tuple[str, plan.Launch]]:
    for has_residual in fused:
        yield "forward", plan.forward_launches(problem, device, has_residual)[-1]
    backward = plan.backward_launches(problem, device, has_gamma=True)
    for launch in backward if problem.spatial == (97, 97) else backward[-1:]:
        yield "backward", launch


def fault(gpu: str, kernel: str, launch: plan.Launch, dtype: str) -> str | None:
    """Compile a launch and describe what is wrong with it; return None if nothing is."""
    os.environ.pop("TRITON_INTERPRET", None)  # Triton reads it on its first import, which follows
    from .compiled import compile_launch

    try:
        report = compile_launch(kernel, launch, dtype, GPUS[gpu].capability)
    except Exception as error:  # the compiler raises many exception types
        return f"does not compile: {str(error).splitlines()[0]}"
    if report.stack:
        return f"{report.stack} bytes of registers spilled"
    if report.shared > GPUS[gpu].shared_memory:
        return f"needs {report.shared} bytes of shared memory, the GPU has {GPUS[gpu].shared_memory}"
    return None if report.tensor_core else "does not use tensor cores"


def main() -> int:
    """Compile all launches in two processes, print what is wrong, and return the exit status."""
    import triton  # pyright: ignore[reportMissingTypeStubs]

    started = time.monotonic()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [(gpu, *job, pool.submit(fault, gpu, *job)) for gpu in GPUS for job in launches(gpu)]
        found = [job for job in jobs if job[-1].result() is not None]
    for gpu, kernel, launch, dtype, job in found:
        print(f"{gpu} {kernel} {dtype}: {job.result()}: {launch.constants}, {launch.num_warps} warps")
    seconds = time.monotonic() - started
    print(f"triton {triton.__version__}: {len(jobs)} launches, {len(found)} failed, {seconds:.0f} s", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
