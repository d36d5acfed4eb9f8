"""The plan of a call: one pass per axis, tile sizes, and a lower bound on the cost.

This is pure arithmetic without torch, jax or triton. Both frameworks, the compile tests and the benchmark use the
same plans.

Tile sizes come from ``configs/<device>.json`` where measurements have pinned them, otherwise from a rule. Nothing is
autotuned during training: the choice depends only on the call's shape and the device, so that runs are bitwise
reproducible.
"""

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

CONFIGS = Path(__file__).parent / "configs"
ITEM_SIZE = {"float16": 2, "bfloat16": 2, "float32": 4}
MIN_CAPABILITY = (8, 0)
# By major compute capability: the PTX version of the oldest ptxas that JAX supports (CUDA 12.6; 12.9 for Blackwell),
# which assembles what Triton compiles for JAX. Triton's own ptxas may be newer. PTX 8.7 spills on sm_100.
PTX_VERSIONS = {8: 85, 9: 85, 10: 88, 12: 88}
MAX_QUERY_CHANNELS = 128  # a tile holds all of them at once, within registers; value channels go in slabs


class Device(NamedTuple):
    """The properties of a GPU on which tile sizes depend.

    Attributes:
        name: device name as reported by the driver; selects the table of pinned tiles.
        capability: compute capability, (major, minor).
        processors: number of multiprocessors.
        shared_memory: bytes per thread block.
    """

    name: str
    capability: tuple[int, int]
    processors: int
    shared_memory: int


class Problem(NamedTuple):
    """The sizes of a call on (batch, *spatial, channels) arrays.

    Attributes:
        axes: spatial axes to attend along, sorted; the position itself is a key on the last one only.
        dtype: name of the dtype of query, key and value, such as "float16".
        precision: how float32 numbers are multiplied, one of ``FLOAT32_PRECISIONS``.
        widest_stride: largest pixel stride of the arrays in elements, if it exceeds the number of channels.
    """

    batch: int
    spatial: tuple[int, ...]
    axes: tuple[int, ...]
    query_channels: int
    value_channels: int
    dtype: str
    precision: str = "tf32x3"
    widest_stride: int = 0


class Tile(NamedTuple):
    """Tile sizes (BLOCK_M queries, BLOCK_N keys, BLOCK_C channels per slab); one row of a tuning table."""

    block_m: int
    block_n: int
    block_c: int
    num_warps: int
    num_stages: int


class Launch(NamedTuple):
    """One kernel launch.

    Attributes:
        grid: number of programs.
        length: number of positions on a line.
        inner: distance in pixels between neighbours on a line.
        constants: compile-time constants by name.
        num_warps, num_stages: Triton launch options.
        compiled: a cache for the compiled kernels, filled by the launcher.
    """

    grid: int
    length: int
    inner: int
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    compiled: dict[Any, Any]

    @property
    def options(self) -> dict[str, Any]:
        """Triton's options, the same for every framework and for the compile tests."""
        # Triton fuses multiplications and additions up to 3.9, and from 3.10 on only where asked to.
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


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
        # Each extra group of slabs recomputes the scores, D / (D + C) of the FLOPs: worth it only for idle processors.
        splits = slabs
        if one_key_tile:
            splits = 1
            while splits < slabs and blocks * splits < device.processors:
                splits *= 2
        constants = {
            "MASK_SELF": not last,
            "HAS_PREVIOUS": index > 0,
            "HAS_RESIDUAL": has_residual and last,
            "SAVE_OUT": save_out or not last,
            "REVERSED": index % 2 == 1,
            "WIDE": _is_wide(problem),
            "ONE_KEY_TILE": one_key_tile,
            "SPLITS": min(splits, slabs),
        }
        grid = blocks * min(splits, slabs)
        launches.append(_launch(problem, tile, grid, length, inner, constants))
    return tuple(launches)


@lru_cache(maxsize=4096)
def backward_launches(problem: Problem, device: Device, has_gamma: bool = False) -> tuple[Launch, ...]:
    """Return the launches of ``line_backward_kernel``, one per axis, in order."""
    launches: list[Launch] = []
    for index, axis in enumerate(problem.axes):
        length, inner, lines = _lines(problem, axis)
        last = index == len(problem.axes) - 1
        tile = choose_tile("backward", problem, length, device)
        constants = {
            "MASK_SELF": not last,
            "HAS_GAMMA": has_gamma,
            "FIRST": index == 0,
            "LAST": last,
            "REVERSED": index % 2 == 1,
            "WIDE": _is_wide(problem),
            "ONE_QUERY_TILE": length <= tile.block_m,
            "ONE_KEY_TILE": length <= tile.block_n,
        }
        launches.append(_launch(problem, tile, lines, length, inner, constants))
    return tuple(launches)


def backward_partials(launches: tuple[Launch, ...]) -> tuple[bool, bool, bool]:
    """Return whether the partial sums of dquery, dkey and dvalue need a float32 array of their own.

    dvalue is as large as the value, so its partial sum is float32 only if a line is split into several tiles. For the
    two or three passes over short lines, the precision of the input is enough, as in the forward pass.
    """
    several_tiles = not all(
        launch.constants["ONE_QUERY_TILE"] and launch.constants["ONE_KEY_TILE"] for launch in launches
    )
    several_terms = several_tiles or len(launches) > 1
    return several_terms, several_terms, several_tiles


def _lines(problem: Problem, axis: int) -> tuple[int, int, int]:
    """Return the length, ``inner`` and the number of the lines along an axis (see ``addressing.py``)."""
    length = problem.spatial[axis]
    pixels = problem.batch * math.prod(problem.spatial)
    return length, math.prod(problem.spatial[axis + 1 :]), pixels // length


def _is_wide(problem: Problem) -> bool:
    """Return whether offsets within one image exceed 32 bits; offsets across the batch always have 64 bits."""
    stride = max(problem.query_channels, problem.value_channels, problem.widest_stride)
    # Twice the image, because a tile also computes addresses beyond the end of its line, though it never reads them.
    return 2 * math.prod(problem.spatial) * stride >= 2**31


def _launch(problem: Problem, tile: Tile, grid: int, length: int, inner: int, constants: dict[str, Any]) -> Launch:
    constants = {
        "D": problem.query_channels,
        "C": problem.value_channels,
        **constants,
        "PRECISION": problem.precision,
        "STAGES": tile.num_stages,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_C": tile.block_c,
        "BLOCK_D": max(16, _power_of_two(problem.query_channels)),
    }
    return Launch(grid, length, inner, constants, tile.num_warps, tile.num_stages, compiled={})


def choose_tile(kernel: str, problem: Problem, length: int, device: Device) -> Tile:
    """Return the pinned tile, or the rule's if there is none, with BLOCK_C limited to the value channels."""
    tile = _pinned_tile(kernel, problem, length, device.name) or _rule(kernel, problem, length, device)
    widest = max(16, _power_of_two(problem.value_channels))
    return tile._replace(block_c=min(tile.block_c, widest))


def _pinned_tile(kernel: str, problem: Problem, length: int, device_name: str) -> Tile | None:
    for row in load_table(device_name):
        if (row["kernel"], row["dtype"]) == (kernel, problem.dtype) and (
            row["min_length"] <= length <= row["max_length"] and problem.query_channels <= row["max_query_channels"]
        ):
            return Tile(**row["tile"])
    return None


_tables: dict[str, list[dict[str, Any]]] = {}


def load_table(device_name: str) -> list[dict[str, Any]]:
    """Return the rows of ``configs/<device>.json``, or an empty list for a device without a table."""
    if device_name not in _tables:
        path = table_path(device_name)
        _tables[device_name] = json.loads(path.read_text())["rows"] if path.exists() else []
    return _tables[device_name]


def use_table(device_name: str, rows: list[dict[str, Any]]) -> None:
    """Replace a device's rows in this process, for tuning and for tests."""
    _tables[device_name] = rows
    forward_launches.cache_clear()
    backward_launches.cache_clear()


def write_table(device: Device, rows: list[dict[str, Any]], origin: dict[str, Any]) -> Path:
    """Write ``configs/<device>.json``, a row per line, with the rows' ``origin``; return its path."""
    head = {"device": device.name, "capability": list(device.capability), **origin}
    fields = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    path = table_path(device.name)
    path.write_text("{\n" + ",\n".join([*fields, f' "rows": [\n{lines}\n ]']) + "\n}\n")
    return path


def table_path(device_name: str) -> Path:
    """Return the path of a device's table of pinned tiles; the file may not exist."""
    return CONFIGS / f"{device_name.lower().replace(' ', '_')}.json"


def _rule(kernel: str, problem: Problem, length: int, device: Device) -> Tile:
    """Return a tile that compiles without spills for sm_80, sm_90 and sm_100 (see ``launch_set.py``).

    In half precision, a line of up to 128 is one tile; on Hopper and datacenter Blackwell the forward pass also holds
    161 to 256 keys in one. On other lines, and in float32, whose three TF32 products need three times the registers,
    the kernels loop, in tiles small enough that a line just above a power of two (129 and 257 come from crops of 1025
    and 2049 at stride 8) is not padded to the next one. A warp owns 16 queries, and more warps would repeat each
    other's products.
    """
    # Consumer GPUs, even newer ones, have Ampere's matrix instructions and little shared memory.
    hopper, blackwell = (device.capability[0] == major for major in (9, 10))
    datacenter = hopper or blackwell
    wide = problem.query_channels > 64
    if problem.dtype == "float32":
        # Register use of a tile varies by dozens between Triton versions; these tiles work with 3.6 to 3.9.
        if kernel == "backward":
            if wide:
                # Two warps of 16 queries cannot hold 128 channels of query, key and their gradients. Four can, and in
                # slabs of 64 each has columns of its own. Prefetching the next slab would spill, and so do slabs of
                # 32 without gamma.
                return Tile(16, 16, 64, 4, 1)
            return Tile(32, 32, 16, 4, 2) if datacenter else Tile(16, 16, 32, 2, 2)
        warps = 8 if blackwell else 4  # Blackwell's MMAs read shared memory, so extra warps duplicate nothing
        if wide:
            return Tile(64, 16, 32, warps, 2)
        return Tile(64, 32 if datacenter else 16, 64, warps, 2)

    tall = _less_padding(length, 128, 64) == 128
    if kernel == "forward":
        if length <= 64:
            return Tile(64, 64, 64, 4, 3)
        if length <= 128:
            # With slabs of 32, two programs share a multiprocessor, so that one loads while the other multiplies.
            return Tile(128, 128, 32, 8, 3) if datacenter or wide else Tile(128, 128, 64, 8, 2)
        if datacenter and not wide and 160 < length <= 256:
            # The loop over keys would repeat the scores for each slab of 128 channels.
            return Tile(128, 256, 32, 8, 3) if tall else Tile(64, 256, 32, 4, 3)
        if tall and not wide:
            return Tile(128, _less_padding(length, 64, 32), 128, 8, 3)
        return Tile(64, 32, 128, 4, 3)
    # With two stages the loop over slabs would wait for the copies that it has just issued.
    if wide:
        return Tile(64, 64, 32, 8, 3) if datacenter else Tile(32, 32, 32, 4, 3)
    if length <= 64:
        return Tile(64, 64, 32, 4, 3)
    if length <= 128:
        return Tile(128, 128 if datacenter else 64, 32, 8, 3)
    block_n = 64 if datacenter else 32
    return Tile(128, block_n, 32, 8, 3) if tall else Tile(64, block_n, 32, 4, 3)


class Cost(NamedTuple):
    """A lower bound for any implementation: its FLOPs, and one memory transfer of each array."""

    flops: int
    bytes: int


def least_cost(problem: Problem, direction: str) -> Cost:
    """Return the lower bound for ``direction``, which is "forward", "backward" or "both".

    A multiply-add counts as two FLOPs. The backward pass recomputes the scores and computes the gradients of the
    scores, query, key and value. The forward pass reads query, key and value and writes the output; the backward pass
    reads all four and the gradient of the output, and writes three gradients.
    """
    if direction == "both":
        parts = [least_cost(problem, part) for part in ("forward", "backward")]
        return Cost(sum(part.flops for part in parts), sum(part.bytes for part in parts))
    pixels = problem.batch * math.prod(problem.spatial)
    d, c = problem.query_channels, problem.value_channels
    scores = pixels * sum(problem.spatial[axis] for axis in problem.axes)
    products, numbers = (d + c, 2 * d + 2 * c) if direction == "forward" else (3 * d + 2 * c, 4 * d + 4 * c)
    statistics = 8 * pixels
    return Cost(2 * products * scores, pixels * numbers * ITEM_SIZE[problem.dtype] + statistics)


def _less_padding(length: int, large: int, small: int) -> int:
    """Return ``large``, which reads less and keeps more on chip, unless its padded line is over 10% longer."""
    return large if -(-length // large) * large <= 1.1 * (-(-length // small) * small) else small


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
