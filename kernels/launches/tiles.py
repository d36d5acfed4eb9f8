"""The tile sizes of a launch: pinned in ``kernels/configs`` where they have been measured, else chosen by a rule.

This is pure arithmetic without torch, jax or triton. Nothing is autotuned during training: the choice depends only on
the call's shape, the device and the version of Triton, so that runs are bitwise reproducible.
"""

import importlib.metadata
import json
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

CONFIGS = Path(__file__).parents[1] / "configs"


class Device(NamedTuple):
    """The properties of a GPU on which tile sizes depend.

    Attributes:
        name: device name as reported by the driver; selects the table of pinned tiles.
        capability: compute capability, (major, minor); on AMD GPUs, the first two digits of ``arch``.
        processors: number of multiprocessors.
        shared_memory: bytes per thread block.
        arch: AMD's name of the architecture, such as "gfx942"; empty for NVIDIA GPUs.
        descriptors: whether kernels may be given tensor descriptors: on Hopper GPUs, by torch; JAX cannot pass them.
        overlaps: whether a launch may start while the previous one ends, which JAX cannot request (``overlap.py``).
    """

    name: str
    capability: tuple[int, int]
    processors: int
    shared_memory: int
    arch: str = ""
    descriptors: bool = False
    overlaps: bool = False


class Problem(NamedTuple):
    """The sizes of a call on (batch, *spatial, channels) arrays.

    Attributes:
        axes: spatial axes to attend along, sorted; the position itself is a key on the last one only.
        dtype: name of the dtype of query, key and value, such as "float16".
        precision: how float32 numbers are multiplied, one of ``FLOAT32_PRECISIONS``.
        widest_stride: largest pixel stride of the arrays in elements, if it exceeds the number of channels.
        aligned: whether all arrays with value channels have one dtype, and start at and advance by multiples of 16
            bytes, as tensor descriptors require.
    """

    batch: int
    spatial: tuple[int, ...]
    axes: tuple[int, ...]
    query_channels: int
    value_channels: int
    dtype: str
    precision: str = "tf32x3"
    widest_stride: int = 0
    aligned: bool = False


class Tile(NamedTuple):
    """Tile sizes (BLOCK_M queries, BLOCK_N keys, BLOCK_C channels per slab); one row of a tuning table.

    Attributes:
        descriptors: whether slabs are copied through tensor descriptors (TMA) instead of pointers.
    """

    block_m: int
    block_n: int
    block_c: int
    num_warps: int
    num_stages: int
    descriptors: bool = False


def choose_tile(kernel: str, problem: Problem, length: int, device: Device) -> Tile:
    """Return the pinned tile, or the rule's if there is none, with BLOCK_C limited to the value channels."""
    pinned = (_fitted(tile, problem) for tile in _pinned_tiles(kernel, problem, length, device.name))
    usable = (tile for tile in pinned if not tile.descriptors or has_descriptors(tile, problem, length, device))
    return next(usable, None) or _fitted(_rule(kernel, problem, length, device), problem)


def _fitted(tile: Tile, problem: Problem) -> Tile:
    widest = max(16, power_of_two(problem.value_channels))
    return tile._replace(block_c=min(tile.block_c, widest))


def has_descriptors(tile: Tile, problem: Problem, length: int, device: Device) -> bool:
    """Return whether the slabs of lines of ``length`` can be copied through tensor descriptors."""
    whole = length <= tile.block_n and problem.value_channels % _fitted(tile, problem).block_c == 0
    return device.descriptors and problem.aligned and whole and not is_wide(problem)


def is_wide(problem: Problem) -> bool:
    """Return whether offsets within one image exceed 32 bits; offsets across the batch always have 64 bits."""
    stride = max(problem.query_channels, problem.value_channels, problem.widest_stride)
    # Twice the image, because a tile also computes addresses beyond the end of its line, though it never reads them.
    return 2 * math.prod(problem.spatial) * stride >= 2**31


def _pinned_tiles(kernel: str, problem: Problem, length: int, device_name: str) -> Iterator[Tile]:
    for row in load_table(device_name):
        if (row["kernel"], row["dtype"]) == (kernel, problem.dtype) and (
            row["min_length"] <= length <= row["max_length"] and problem.query_channels <= row["max_query_channels"]
        ):
            # The tile that is fastest with one version may spill registers with another.
            if "measured" in row and not triton_version().startswith(_minor(row["measured"]["triton"])):
                continue
            yield Tile(**row["tile"])


@cache
def triton_version() -> str:
    """Return the installed version of Triton without importing it; an empty string if it is not installed."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2]) + "."


tables: dict[str, list[dict[str, Any]]] = {}


def load_table(device_name: str) -> list[dict[str, Any]]:
    """Return the rows of ``configs/<device>.json``, or an empty list for a device without a table."""
    if device_name not in tables:
        path = table_path(device_name)
        tables[device_name] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return tables[device_name]


def write_table(device: Device, rows: list[dict[str, Any]], origin: dict[str, Any]) -> Path:
    """Write ``configs/<device>.json`` atomically, one row per line, with the rows' ``origin``; return its path."""
    head = {"device": device.name, "capability": list(device.capability), **origin}
    fields = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    path = table_path(device.name)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text("{\n" + ",\n".join([*fields, f' "rows": [\n{lines}\n ]']) + "\n}\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path


def table_path(device_name: str) -> Path:
    """Return the path of a device's table of pinned tiles; the file may not exist."""
    return CONFIGS / f"{device_name.lower().replace(' ', '_')}.json"


def _rule(kernel: str, problem: Problem, length: int, device: Device) -> Tile:
    """Return a tile that compiles without spills for sm_80, sm_90 and sm_100 (see ``launch_set.py``).

    In half precision, the forward pass holds all keys of a line of up to 128 in one tile; for D up to 64, Hopper and
    datacenter Blackwell also hold 161 to 256 keys in one, and up to 128 in the backward pass (64 on other GPUs). For
    other lines, and in float32, whose three TF32 products need three times the registers, the kernels loop over tiles
    small enough that a line just above a power of two (129 and 257 come from crops of 1025 and 2049 at stride 8) is
    not padded to the next one. A warp owns 16 queries, and more warps would repeat each other's products. Hopper's
    tiles for lines of 65 to 128 and 161 to 256 are the fastest on an H200 among those that spill with no supported
    Triton version (``results/kernels_log.md``).
    """
    if device.arch:
        return _amd_rule(kernel, problem, length)
    # Consumer GPUs, even newer ones, have Ampere's matrix instructions and little shared memory.
    hopper, blackwell = (device.capability[0] == major for major in (9, 10))
    datacenter = hopper or blackwell
    wide = problem.query_channels > 64
    if problem.dtype == "float32":
        # A tile's register count varies by dozens between Triton versions; these tiles do not spill with 3.6 to 3.9.
        if kernel == "backward":
            if wide:
                # Fewer warps cannot hold 128 channels of query, key and their gradients. Prefetching the next slab
                # would spill.
                return Tile(16, 16, 64, 8, 1)
            return Tile(32, 32, 16, 8, 2)  # four warps would use all 255 registers
        warps = 8 if blackwell else 4  # Blackwell's MMAs read shared memory, so extra warps duplicate nothing
        if wide:
            return Tile(64, 16, 32, warps, 2)
        return Tile(64, 32 if datacenter else 16, 64, warps, 2)

    tall = _less_padding(length, 128, 64) == 128
    if kernel == "forward":
        if length <= 64:
            return Tile(64, 64, 64, 4, 3)
        if length <= 128:
            # Two programs, or three with descriptors, share a multiprocessor: one loads while another multiplies.
            if hopper and not wide:
                tile = Tile(64, 128, 64, 4, 3)
                return tile._replace(descriptors=has_descriptors(tile, problem, length, device))
            return Tile(128, 128, 32, 8, 3) if datacenter or wide else Tile(128, 128, 64, 8, 2)
        if datacenter and not wide and 160 < length <= 256:
            # A loop over keys would recompute the scores for each slab of 128 channels.
            if hopper:
                tile = Tile(64, 256, 32, 4, 4, descriptors=True)
                if has_descriptors(tile, problem, length, device):
                    return tile
                return Tile(128, 256, 32, 8, 5) if tall else tile._replace(descriptors=False)
            return Tile(128, 256, 32, 8, 3) if tall else Tile(64, 256, 32, 4, 3)
        if tall and not wide:
            return Tile(128, _less_padding(length, 64, 32), 128, 8, 3)
        return Tile(64, 32, 128, 4, 3)
    # With two stages the loop over slabs would wait for the copies that it has just issued.
    if wide:
        return Tile(64, 64, 32, 8, 3) if datacenter else Tile(64, 32, 32, 4, 3)
    if length <= 64:
        return Tile(64, 64, 32, 4, 3)
    if length <= 128:
        return Tile(128, 128 if datacenter else 64, 32, 8, 4 if hopper else 3)
    if tall:
        return Tile(128, 128 if datacenter else 32, 32, 8, 5 if hopper else 3)
    return Tile(64, 64 if datacenter else 32, 32, 4, 3)


def _amd_rule(kernel: str, problem: Problem, length: int) -> Tile:
    """Return a tile that compiles without spills for gfx942 and gfx950, within the 64 KB of shared memory of gfx942.

    A program of four wavefronts has 512 registers per thread (of eight, only 256), so in half precision a line of up to
    128 fits in one tile in the backward pass too. In float32, such a tile would need too much shared memory, although
    AMD's matrix units multiply float32 natively.
    """
    half, wide = problem.dtype != "float32", problem.query_channels > 64
    if kernel == "forward":
        if length <= 128:
            if half:
                return Tile(64, 64, 64, 4, 2) if length <= 64 else Tile(128, 128, 64, 8, 2)
            return Tile(64, 64 if length <= 64 else 128, 32, 4, 2)
        if half and not wide and 160 < length <= 256:
            return Tile(64, 256, 32, 4, 2)
        return Tile(64, 32, 128 if half else 64, 4, 2)
    side = 128 if half and 64 < length <= 128 else 64
    return Tile(side, side, 32 if half else 16, 4, 2)


def _less_padding(length: int, large: int, small: int) -> int:
    """Return ``large``, which reads less and keeps more on chip, unless its padded line is over 10% longer."""
    return large if -(-length // large) * large <= 1.1 * (-(-length // small) * small) else small


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()
