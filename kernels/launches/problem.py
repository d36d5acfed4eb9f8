"""The sizes of a call, the properties of a GPU, and the tile sizes of a launch.

Like the rest of this folder except ``compiled.py``, this is pure arithmetic without torch, jax or triton.
"""

import math
from typing import NamedTuple


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


def fitted(tile: Tile, problem: Problem) -> Tile:
    """Return the tile with BLOCK_C limited to the value channels."""
    widest = max(16, power_of_two(problem.value_channels))
    return tile._replace(block_c=min(tile.block_c, widest))


def has_descriptors(tile: Tile, problem: Problem, length: int, device: Device) -> bool:
    """Return whether the slabs of lines of ``length`` can be copied through tensor descriptors."""
    whole = length <= tile.block_n and problem.value_channels % fitted(tile, problem).block_c == 0
    return device.descriptors and problem.aligned and whole and not is_wide(problem)


def is_wide(problem: Problem) -> bool:
    """Return whether offsets within one image exceed 32 bits; offsets across the batch always have 64 bits."""
    stride = max(problem.query_channels, problem.value_channels, problem.widest_stride)
    # Twice the image, because a tile also computes addresses beyond the end of its line, though it never reads them.
    return 2 * math.prod(problem.spatial) * stride >= 2**31


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()
