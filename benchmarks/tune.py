"""Search for the fastest tile sizes on this GPU, and save them in ``kernels/configs/<gpu>.json`` for later runs."""

import itertools
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from ..kernels import plan, tiles
from ..kernels.launch_cases import backward_cases, forward_cases
from . import peers
from .compare_torch import calls_of, largest_error, make_inputs
from .comparison_rows import TOLERANCE
from .timing import measure, provenance


def candidates(problem: plan.Problem, length: int) -> list[tiles.Tile]:
    """Return the tiles worth compiling: one warp per 16 queries, no dimension more than twice as long as needed."""
    enough = max(32, 2 * length)
    found = []
    for m, n, c, stages in itertools.product((32, 64, 128), (16, 32, 64, 128), (16, 32, 64, 128), (2, 3, 4)):
        if max(m, n) < enough and c <= problem.value_channels:
            found.append(tiles.Tile(m, n, c, m // 16, stages))
    return found


def fits(kernel: str, problem: plan.Problem, device: plan.Device) -> bool:
    """Return True if the pinned tile compiles without spills and fits into the GPU's shared memory."""
    from ..kernels.compiled import compile_case

    make = forward_cases if kernel == "forward" else backward_cases
    for case in make(problem, device):
        report = compile_case(case, device)
        if report.stack or report.shared > device.shared_memory:
            return False
    return True


def tune_kernels(config: DictConfig, device: torch.device) -> str:
    """Time every candidate for every dtype and range of lengths; save the best ones and return a line naming the file.

    Raises:
        ValueError: the device is not a GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"mode=tune times kernels on an NVIDIA GPU, but the device is {device}")
    from ..kernels.torch_ops.passes import device_of

    torch.manual_seed(config.seed)
    gpu = device_of(torch.cuda.current_device())
    rows: list[dict[str, Any]] = []
    grid = itertools.product(config.tune.dtypes, config.tune.ranges, ("forward", "backward"))
    for dtype, (shortest, longest, length), kernel in grid:
        row = {"kernel": kernel, "dtype": dtype, "min_length": shortest, "max_length": longest}
        row |= {"max_query_channels": config.query_channels}
        shape = [8, 128, length]
        sets = [
            make_inputs(shape, config.query_channels, config.value_channels, getattr(torch, dtype), device)
            for _ in range(2)
        ]
        problem = plan.Problem(8, (128, length), (1,), config.query_channels, config.value_channels, dtype)
        peer = peers.Peer(peers.triton_rows, attends="rows")
        best = None
        for tile in tqdm(candidates(problem, length), desc=f"{kernel} {dtype} {length}", disable=None):
            plan.use_table(gpu.name, [*rows, row | {"tile": tile._asdict()}])
            if not fits(kernel, problem, gpu) or not largest_error(peer, sets[0]) < TOLERANCE[dtype]:
                continue
            median = measure(calls_of(peer, sets)[kernel], config.repeats, device).median_us
            if best is None or median < best[0]:
                best = median, tile
        if best:
            rows.append(row | {"tile": best[1]._asdict(), "median_us": round(best[0], 1)})
    path = tiles.write_table(gpu, rows, {"origin": "tuned", **provenance(device)})
    return f"{len(rows)} rows in {path}"
