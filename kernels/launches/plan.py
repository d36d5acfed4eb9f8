"""The plan of a call: one launch per axis.

This is pure arithmetic without torch, jax or triton. Both frameworks, the compile tests and the benchmark use the
same plans; the tile sizes come from ``tiles.py``.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

from . import tile_tables
from .problem import Device, Problem, Tile, is_wide, power_of_two
from .tiles import choose_tile

ITEM_SIZE = {"float16": 2, "bfloat16": 2, "float32": 4}
# Only the residual and gamma may be float64.
TRITON_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
MIN_CAPABILITY = (8, 0)
# The PTX version by compute capability, for JAX: that of the oldest ptxas that JAX supports (CUDA 12.6; 12.9 for
# Blackwell), as JAX's ptxas may be older than Triton's. GPUs that are not listed use Triton's default. LLVM aborts the
# process if the version is too old for the GPU: sm_103 and sm_121 need 8.8. PTX 8.7 spills registers on sm_100.
PTX_VERSIONS = {
    **dict.fromkeys([(8, 0), (8, 6), (8, 7), (8, 9), (9, 0)], 85),
    **dict.fromkeys([(10, 0), (10, 3), (12, 0), (12, 1)], 88),
}
# The AMD architectures that the kernels support, with the bytes of shared memory (LDS) per program.
AMD_SHARED_MEMORY = {"gfx942": 65536, "gfx950": 163840}
# Accumulating three terms in bfloat16 is as accurate as plain attention, which rounds the contribution of each axis and
# their sum.
MAX_NARROW_TERMS = 3
MAX_QUERY_CHANNELS = 128  # a tile holds all of them in registers; value channels are split into slabs


class Launch(NamedTuple):
    """One kernel launch.

    Attributes:
        grid: number of programs.
        length: number of positions on a line.
        inner: distance in pixels between neighbours on a line.
        constants: compile-time constants by name.
        tile: the tile sizes, which are also among the constants.
        compiled: a cache for the compiled kernels, filled by the launcher.
    """

    grid: int
    length: int
    inner: int
    constants: dict[str, Any]
    tile: Tile
    compiled: dict[Any, Any]

    @property
    def options(self) -> dict[str, Any]:
        """Triton's options, the same for every framework and for the compile tests."""
        # Up to 3.9, Triton fuses multiplications and additions by default; from 3.10 on, only on request.
        options = {"num_warps": self.tile.num_warps, "num_stages": self.tile.num_stages, "enable_fp_fusion": True}
        if self.constants["WAITS"]:
            options["launch_pdl"] = True
        return options


def kept_dtype(dtype: str) -> str:
    """Return the dtype of the output that the backward pass reads: float32 for float16, else the value's.

    With large scores, computing delta = sum(out * grad) from a rounded output costs the gradients of query and key
    most of float16's eleven bits. bfloat16 has only eight, which do not justify doubling the memory.
    """
    return "float32" if dtype == "float16" else dtype


@lru_cache(maxsize=4096)
def forward_launches(
    problem: Problem, device: Device, has_residual: bool = False, save_out: bool = True
) -> tuple[Launch, ...]:
    """Return the launches of ``line_forward_kernel``, one per axis, in order."""
    launches: list[Launch] = []
    for index, axis in enumerate(problem.axes):
        length, inner, lines = _lines(problem, axis)
        last = index == len(problem.axes) - 1
        tile = choose_tile("forward", problem, length, device)
        one_key_tile = length <= tile.block_n
        slabs = -(-problem.value_channels // tile.block_c)
        blocks = lines * -(-length // tile.block_m)
        splits = _splits(tile, slabs, blocks, device) if one_key_tile else slabs
        constants = {
            "MASK_SELF": not last,
            "HAS_PREVIOUS": index > 0,
            "HAS_RESIDUAL": has_residual and last,
            "SAVE_OUT": save_out or not last,
            "REVERSED": index % 2 == 1,
            "WIDE": is_wide(problem),
            "ONE_KEY_TILE": one_key_tile,
            "SPLITS": splits,
            **_overlap(device, index, last),
        }
        grid = blocks * splits
        launches.append(_launch(problem, device, tile, grid, length, inner, constants))
    return tuple(launches)


def _splits(tile: Tile, slabs: int, blocks: int, device: Device) -> int:
    """Return the number of programs that share the slabs of a block of queries.

    Each program recomputes the scores, D / (D + C) of the FLOPs, so several are worth it only if processors idle.
    """
    splits = 1
    while splits < slabs and blocks * splits < device.processors:
        # Descriptors do not mask the channels beyond the last slab, so all programs must have the same number.
        if tile.descriptors and slabs % (2 * splits):
            break
        splits *= 2
    return min(splits, slabs)


@lru_cache(maxsize=4096)
def backward_launches(
    problem: Problem, device: Device, has_gamma: bool = False, joined: bool = False
) -> tuple[Launch, ...]:
    """Return the launches of ``line_backward_kernel``, one per axis, in order.

    Args:
        problem: the call.
        device: the GPU it runs on.
        has_gamma: whether the forward pass added a residual.
        joined: whether the gradients of query, key and value are slices of one array.
    """
    launches: list[Launch] = []
    for index, axis in enumerate(problem.axes):
        length, inner, lines = _lines(problem, axis)
        last = index == len(problem.axes) - 1
        tile = choose_tile("backward", problem, length, device)
        constants = {
            "MASK_SELF": not last,
            "HAS_GAMMA": has_gamma,
            "JOINED": joined,
            "FIRST": index == 0,
            "LAST": last,
            "REVERSED": index % 2 == 1,
            "WIDE": is_wide(problem),
            "ONE_QUERY_TILE": length <= tile.block_m,
            "ONE_KEY_TILE": length <= tile.block_n,
            **_overlap(device, index, last),
        }
        launches.append(_launch(problem, device, tile, lines, length, inner, constants))
    return tuple(launches)


def backward_partials(launches: tuple[Launch, ...]) -> tuple[bool, bool, bool]:
    """Return whether the partial sums of dquery, dkey and dvalue need a separate float32 array.

    dquery is accumulated over passes and key tiles; dkey and dvalue over passes and query tiles. dvalue is as large as
    the value, so its partial sum is in float32 only for more than ``MAX_NARROW_TERMS`` terms; for fewer, the input's
    precision is enough, as in the forward pass.
    """
    several_passes = len(launches) > 1
    key_tiles = not all(launch.constants["ONE_KEY_TILE"] for launch in launches)
    terms = sum(-(-launch.length // launch.constants["BLOCK_M"]) for launch in launches)
    return several_passes or key_tiles, terms > 1, terms > MAX_NARROW_TERMS


def _lines(problem: Problem, axis: int) -> tuple[int, int, int]:
    """Return the length, ``inner`` and the number of lines along an axis (see ``addressing.py``)."""
    length = problem.spatial[axis]
    pixels = problem.batch * math.prod(problem.spatial)
    return length, math.prod(problem.spatial[axis + 1 :]), pixels // length


def _overlap(device: Device, index: int, last: bool) -> dict[str, Any]:
    """Return the constants that let each pass start before the previous one has ended (see ``overlap.py``)."""
    return {"WAITS": device.overlaps and index > 0, "SIGNALS": device.overlaps and not last}


def _launch(
    problem: Problem, device: Device, tile: Tile, grid: int, length: int, inner: int, constants: dict[str, Any]
) -> Launch:
    constants = {
        "D": problem.query_channels,
        "C": problem.value_channels,
        **constants,
        # AMD's matrix units multiply float32 natively, and Triton rejects other precisions there.
        "PRECISION": "ieee" if device.arch else problem.precision,
        "STAGES": tile.num_stages,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_C": tile.block_c,
        "BLOCK_D": max(16, power_of_two(problem.query_channels)),
    }
    return Launch(grid, length, inner, constants, tile, compiled={})


def use_table(device_name: str, rows: list[dict[str, Any]]) -> None:
    """Replace the rows of a device's table in this process only, for tuning and tests."""
    tile_tables.tables[device_name] = rows
    forward_launches.cache_clear()
    backward_launches.cache_clear()
