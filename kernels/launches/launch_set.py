"""The launches that must compile well with every supported Triton version, and a command that compiles them all.

``python -m ccnet.kernels.launches.launch_set`` needs only Triton: no torch and no GPU.
"""

import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from . import plan, tile_tables
from .launch_cases import Case, backward_cases, for_jax, forward_cases

if TYPE_CHECKING:
    from .compiled import Report

GPUS = {
    "sm_80": plan.Device("A100", (8, 0), 108, 166912),
    "sm_86": plan.Device("GeForce RTX 3090", (8, 6), 82, 101376),
    "sm_89": plan.Device("GeForce RTX 4090", (8, 9), 128, 101376),
    "sm_90": plan.Device("H100", (9, 0), 132, 232448, descriptors=True, overlaps=True),
    "sm_100": plan.Device("B200", (10, 0), 148, 232448),
    "sm_120": plan.Device("GeForce RTX 5090", (12, 0), 170, 101376),
    "gfx942": plan.Device("MI300X", (9, 4), 304, plan.AMD_SHARED_MEMORY["gfx942"], "gfx942"),
    "gfx950": plan.Device("MI355X", (9, 5), 256, plan.AMD_SHARED_MEMORY["gfx950"], "gfx950"),
}
# (dtype, D, lengths) at the paper's C = 512. The lengths cover the tile rule's branches for these GPUs: crops of 769,
# 1025 and 2049 give lines of 97, 129 and 257 pixels; 257 is tiled like 129.
SHAPES = [
    ("bfloat16", 64, (64, 97, 129, 177, 200, 256, 384)),
    ("bfloat16", 128, (64, 97, 129)),
    ("float32", 64, (97,)),
    ("float32", 128, (97,)),
]
# In float16, the output is kept in float32, which has tiles of its own on some GPUs.
FLOAT16_LENGTHS = {"sm_90": (97,), "sm_86": (97, 129), "sm_89": (97, 129), "sm_120": (97, 129)}
# On AMD GPUs, D and float32 select other branches of the rule.
AMD_SHAPES = [
    ("bfloat16", 64, (64, 97, 129, 200)),
    ("bfloat16", 128, (64, 97, 129)),
    ("float32", 64, (64, 97, 129)),
    ("float32", 128, (64, 97, 129)),
    ("float16", 64, (97,)),
]
# With one axis, the only pass is both first and last; with three, one pass is neither. Next to lines of 256, which
# accumulate over several tiles, the partial sums of lines of 128 are in float32 too.
OTHER_SPACES = [(97,), (97, 97, 97), (128, 256), (256, 128)]


def cases(gpu: str) -> list[Case]:
    """Return every distinct launch of torch and of JAX: each pass, with and without gamma or a residual.

    JAX's launches, which have another PTX version, separate gradients and neither descriptors nor overlap, are included
    for lines of 97 and 129, and on Hopper of 177 and 200. On AMD GPUs, where JAX does not use the kernels, launches on
    arrays of 2 GiB or more are included for lines of 97 and 129 in bfloat16 instead.

    Args:
        gpu: a name in ``GPUS``.
    """
    shapes = AMD_SHAPES if GPUS[gpu].arch else [*SHAPES, ("float16", 64, FLOAT16_LENGTHS.get(gpu, ()))]
    problems = [
        plan.Problem(8, (length, length), (0, 1), query_channels, 512, dtype)
        for dtype, query_channels, lengths in shapes
        for length in lengths
    ]
    problems += [plan.Problem(1, spatial, tuple(range(len(spatial))), 64, 512, "bfloat16") for spatial in OTHER_SPACES]
    pairs = itertools.product(_with_tables(gpu), problems)
    return distinct(case for device, problem in pairs for case in _variants(problem, device))


def _variants(problem: plan.Problem, device: plan.Device) -> Iterator[Case]:
    """Yield the launches of every kind of call, some of them also in the form of JAX or of large arrays."""
    # With tensor descriptors, lines of 161 to 256 have tiles of their own.
    lengths = (97, 129, 177, 200) if device.descriptors else (97, 129)
    both_forms = problem.spatial in [(length, length) for length in lengths]
    residuals = ("float32",) if problem.spatial == (97, 97) else ()
    aligned = calls(problem._replace(aligned=True), device, *residuals)
    if device.arch:
        for case in aligned:
            yield case._replace(small=True)
            if both_forms and problem.dtype == "bfloat16" and problem.query_channels == 64:
                yield case._replace(small=False)
        return
    yield from aligned
    if both_forms:
        yield from calls(problem, device, *residuals)  # of arrays that tensor descriptors cannot describe
        without = device._replace(descriptors=False, overlaps=False)
        jax = (case for case in calls(problem, without, *residuals) if not case.launch.constants.get("JOINED"))
        yield from (for_jax(case, device.capability) for case in jax)


def distinct(cases: Iterable[Case]) -> list[Case]:
    """Remove the launches that compile to the same code as an earlier one."""
    unique: dict[Any, Case] = {}
    for case in cases:
        parts = case.launch.constants, case.launch.options, case.pointers, case.descriptors
        sorted_parts = tuple(tuple(sorted(part.items())) for part in parts)
        unique.setdefault((case.kernel, *sorted_parts, case.ptx_version, case.small), case)
    return list(unique.values())


def _with_tables(gpu: str) -> list[plan.Device]:
    """Return the GPU, which has no table and so uses the rule, and every GPU of the same capability that has one."""
    headers = [json.loads(path.read_text(encoding="utf-8")) for path in tile_tables.CONFIGS.glob("*.json")]
    names = [header["device"] for header in headers if tuple(header["capability"]) == GPUS[gpu].capability]
    return [GPUS[gpu], *(GPUS[gpu]._replace(name=name) for name in names)]


def calls(problem: plan.Problem, device: plan.Device, *residuals: str) -> Iterator[Case]:
    """Yield the launches of every kind of call.

    That is, with and without a residual, with and without a backward pass, and with gradients in one array or three.

    Args:
        problem: the call.
        device: the GPU.
        *residuals: dtypes of the residual besides that of the value. Under autocast, it may stay in float32.
    """
    yield from forward_cases(problem, device)
    for residual in sorted({problem.dtype, *residuals}):
        for save_out in (True, False):
            yield from forward_cases(problem, device, residual, save_out)
    for has_gamma in (True, False):
        for joined in (True, False):
            yield from backward_cases(problem, device, has_gamma, joined)


def fault(gpu: str, case: Case) -> str | None:
    """Compile a launch and describe what is wrong with it, or return None if it is sound."""
    os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is first imported, below
    from .compiled import compile_case

    try:
        report = compile_case(case, GPUS[gpu])
    except Exception as error:  # the compiler raises many exception types
        first, *_ = str(error).splitlines() or [""]
        return f"does not compile: {type(error).__name__}: {first}"
    return weakness(report, case, GPUS[gpu].shared_memory)


def weakness(report: "Report", case: Case, shared_memory: int) -> str | None:
    """Describe what is wrong with a compiled launch for a GPU's bytes of shared memory; return None if it is sound."""
    if report.stack:
        return f"{report.stack} bytes of registers spilled"
    if report.shared > shared_memory:
        return f"needs {report.shared} bytes of shared memory, the GPU has {shared_memory}"
    if not report.tensor_core:
        return "does not use tensor cores"
    if report.stores_early:
        return "writes to global memory before it waits for the previous launch"
    # With two stages, the loop waits for the copies it has just issued, which exposes their full latency.
    copies, stages = report.in_flight, case.launch.tile.num_stages
    if case.kernel == "backward" and stages > 2 and copies is not None and min(copies, default=0) == 0:
        return f"the loop over slabs waits for its last copy: {copies} in flight"
    return None


def main() -> int:
    """Compile all launches in parallel, report each GPU as soon as it is done, and return the exit status."""
    import triton

    started = time.monotonic()
    number = failed = 0
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {gpu: [(case, pool.submit(fault, gpu, case)) for case in cases(gpu)] for gpu in GPUS}
        for gpu, of_gpu in jobs.items():
            faults = [(case, found) for case, job in of_gpu if (found := job.result()) is not None]
            for case, found in faults:
                print(f"{gpu} {case.kernel}: {found}: {case}")
            print(f"{gpu}: {len(of_gpu)} launches, {len(faults)} failed", flush=True)
            number, failed = number + len(of_gpu), failed + len(faults)
    seconds = time.monotonic() - started
    print(f"triton {triton.__version__}: {number} launches, {failed} failed, {seconds:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
