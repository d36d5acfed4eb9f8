"""Search for the fastest tile sizes on this GPU, and save them in ``kernels/configs/<gpu>.json`` for later runs."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig

from ...engine.drawing.tables import Table
from ...engine.runtime.provenance import provenance
from ...kernels.launches import launch_set
from ...kernels.launches.plan import ITEM_SIZE
from ...kernels.launches.problem import Problem
from ..failures import require_none
from ..timing import input_sets
from .compilers import Compilers
from .examine import examine
from .log import Log
from .search import Measures, Search
from .table import Range, TunedTable, measured_with

BATCH = 8


def tune_kernels(config: DictConfig, device: torch.device) -> str:
    """Time the candidates for every dtype and range of lengths, pin the fastest, and return a table of the results.

    Each row of the GPU's table of tiles is written as soon as it is measured, and every candidate is recorded in
    ``<output>_tune.csv``. Ranges that have already been measured with the same versions are skipped. With
    ``tune.compile_only=sm_90``, the candidates are only compiled, which needs no GPU.

    Raises:
        ValueError: the device is not a GPU, an option is not among its choices, or a range has no sound candidate.
        TimeoutError: the time limit is reached; another call continues the search.
    """
    options = config.tune
    if unknown := [dtype for dtype in options.dtypes if dtype not in ITEM_SIZE]:
        raise ValueError(f"tune.dtypes contains {', '.join(map(str, unknown))}: choose some of {', '.join(ITEM_SIZE)}")
    versions = provenance(device)
    if options.compile_only:
        if options.compile_only not in launch_set.GPUS:
            known = ", ".join(launch_set.GPUS)
            raise ValueError(f"tune.compile_only is {options.compile_only!r}: choose one of {known}")
        gpu, table, make_trial = launch_set.GPUS[options.compile_only], None, None
        versions["machine"] = f"{options.compile_only}, compiled only"
    elif device.type != "cuda":
        raise ValueError(
            f"mode=tune times kernels on a GPU, but the device is {device}: tune.compile_only=sm_90 compiles "
            "the candidates without one"
        )
    else:
        from ...kernels.torch_ops.devices import device_of

        torch.manual_seed(config.seed)
        gpu = device_of(torch.cuda.current_device())
        table, make_trial = TunedTable(gpu, measured_with(versions)), _trials(config, device)
    wanted = [scope for scope in ranges(config) if table is None or not table.has(scope)]
    path = Path(f"{config.output}_tune.csv")
    with Compilers(examine, options.processes or len(os.sched_getaffinity(0)), options.compile_seconds) as compilers:
        search = Search(gpu, compilers, make_trial, 60 * options.minutes, Log(path, versions))
        try:
            records = search.run(wanted, BATCH, config.value_channels, table)
        except TimeoutError as error:
            raise TimeoutError(f"tune.minutes={options.minutes}: {error}; run the command again to continue") from None
    if not records:
        return "every range was measured before with these versions and kernels"
    text = f"{Table.of_records(records).text()}\n\n{path}"
    require_none(search.failures, text)
    return text


def ranges(config: DictConfig) -> list[Range]:
    """Return the ranges to tune, in the order of the configuration."""
    return [
        Range(kernel, dtype, shortest, longest, length, config.query_channels)
        for dtype in config.tune.dtypes
        for shortest, longest, length in config.tune.ranges["float32" if dtype == "float32" else "half"]
        for kernel in ("forward", "backward")
    ]


def _trials(config: DictConfig, device: torch.device) -> Callable[[Range, Problem], Measures]:
    from .trial import Trial  # imports Triton

    def make(scope: Range, problem: Problem) -> Measures:
        return Trial(scope.kernel, problem, device, input_sets(problem, config.cache_mib), config.repeats)

    return make
