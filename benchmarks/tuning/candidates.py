"""The tiles worth timing: about ten for each kernel, dtype and range of line lengths.

They vary one or two parameters at a time of the rule's tile in ``kernels/launches/tile_rule.py``: stages, slab width,
queries, keys. A tile that holds a whole line keeps its softmax weights on chip; tiles that loop over keys suit lengths
that rounding up to a power of two would pad too much. In the forward pass a tile holds up to 256 keys; in the backward
pass, which keeps two such maps, every tile of 256 keys spills. Most tiles have one warp per 16 queries, because more
warps repeat each other's products; those that need the registers of eight warps have eight. The lists for 128 and 256
follow measurements on an H100 and an H200, where wide slabs and many stages win because they keep more bytes in flight
(``results/kernels_log.md``). Tiles that spill are skipped.
"""

from typing import Any

from ...kernels.launches.problem import Device, Problem, Tile, has_descriptors
from ...kernels.launches.tiles import choose_tile

# (BLOCK_M, BLOCK_N, BLOCK_C, warps, stages) by the longest line that each list is meant for, followed by whether
# slabs are copied through tensor descriptors.
_HALF: dict[str, dict[int, list[tuple[Any, ...]]]] = {
    "forward": {
        64: [
            (64, 64, 64, 4, 3), (64, 64, 64, 4, 2), (64, 64, 64, 4, 4), (64, 64, 32, 4, 3), (64, 64, 32, 4, 4),
            (64, 64, 128, 4, 2), (64, 64, 128, 4, 3), (32, 64, 64, 2, 3), (32, 64, 128, 2, 2),
            (64, 64, 64, 4, 3, True), (64, 64, 64, 4, 4, True), (64, 64, 128, 4, 3, True),
        ],
        128: [
            (128, 128, 32, 8, 3), (64, 128, 64, 4, 3), (64, 128, 64, 4, 4), (64, 128, 32, 4, 4), (64, 128, 32, 4, 5),
            (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 32, 8, 4), (64, 128, 64, 4, 2),
            (64, 128, 64, 4, 3, True), (64, 128, 64, 4, 2, True),
            (64, 128, 32, 4, 4, True), (128, 128, 64, 8, 3, True),
        ],
        160: [
            (64, 32, 128, 4, 3), (64, 32, 128, 4, 2), (64, 32, 128, 4, 4), (128, 32, 128, 8, 3), (64, 64, 128, 4, 3),
            (64, 64, 64, 4, 3), (64, 256, 32, 4, 3), (64, 256, 32, 4, 2), (64, 256, 32, 8, 3), (128, 256, 32, 8, 3),
        ],
        256: [
            (128, 256, 32, 8, 3), (64, 256, 32, 4, 3), (64, 256, 32, 4, 4), (64, 256, 32, 4, 5), (64, 256, 32, 4, 6),
            (128, 256, 32, 8, 4), (128, 256, 32, 8, 5), (128, 256, 64, 8, 2), (128, 256, 64, 8, 3), (64, 64, 128, 4, 3),
            (64, 256, 32, 4, 4, True), (64, 256, 32, 4, 3, True), (128, 256, 32, 8, 5, True),
        ],
        1024: [
            (64, 32, 128, 4, 3), (64, 32, 128, 4, 2), (64, 32, 128, 4, 4), (64, 64, 128, 4, 3), (128, 32, 128, 8, 3),
            (128, 64, 128, 8, 3), (128, 64, 128, 8, 2), (128, 128, 128, 8, 2), (64, 64, 64, 4, 3), (128, 64, 64, 8, 3),
        ],
    },
    "backward": {
        64: [
            (64, 64, 32, 4, 3), (64, 64, 32, 4, 2), (64, 64, 32, 4, 4), (64, 64, 64, 4, 2), (64, 64, 64, 4, 3),
            (64, 64, 16, 4, 4), (64, 64, 32, 8, 3), (64, 64, 64, 8, 3), (64, 32, 32, 4, 3),
        ],
        128: [
            (128, 128, 32, 8, 4), (128, 128, 32, 8, 3), (128, 128, 32, 8, 5), (128, 128, 32, 8, 6),
            (128, 128, 64, 8, 3), (128, 128, 64, 8, 2), (128, 128, 16, 8, 4), (128, 64, 64, 8, 3), (128, 64, 64, 8, 4),
        ],
        160: [
            (64, 64, 32, 4, 3), (64, 64, 32, 4, 4), (64, 64, 32, 8, 3), (128, 128, 32, 8, 3), (128, 128, 16, 8, 4),
            (128, 64, 32, 8, 3), (64, 32, 32, 4, 3), (128, 32, 64, 8, 3), (64, 128, 16, 8, 3), (64, 128, 32, 8, 3),
        ],
        256: [
            (128, 128, 32, 8, 3), (128, 128, 32, 8, 4), (128, 128, 32, 8, 5), (128, 64, 64, 8, 3), (128, 64, 64, 8, 4),
            (128, 64, 32, 8, 4), (128, 128, 16, 8, 4), (128, 128, 64, 8, 3),
        ],
        1024: [
            (64, 64, 32, 4, 3), (64, 64, 32, 4, 4), (64, 64, 32, 8, 3), (128, 128, 32, 8, 3), (128, 128, 16, 8, 4),
            (128, 64, 32, 8, 3), (128, 64, 64, 8, 3), (128, 32, 64, 8, 3), (64, 32, 32, 4, 3), (64, 128, 16, 8, 3),
        ],
    },
}  # fmt: skip
# Three TF32 products need three times the registers.
_FLOAT32: dict[str, dict[int, list[tuple[Any, ...]]]] = {
    "forward": {
        1024: [
            (64, 32, 64, 4, 2), (64, 32, 64, 4, 3), (64, 16, 64, 4, 2), (64, 16, 64, 4, 3), (64, 32, 32, 4, 2),
            (64, 32, 32, 4, 3), (64, 32, 64, 8, 2), (64, 64, 32, 4, 2),
        ],
    },
    "backward": {
        1024: [
            (32, 32, 16, 4, 2), (32, 32, 16, 4, 3), (32, 32, 16, 4, 1), (16, 16, 32, 2, 2), (16, 16, 32, 2, 3),
            (16, 16, 64, 2, 2), (16, 32, 16, 2, 2), (32, 16, 16, 2, 2), (16, 16, 32, 4, 2),
        ],
    },
}  # fmt: skip


def candidates(kernel: str, problem: Problem, length: int, device: Device) -> list[Tile]:
    """Return the tiles to time for lines of ``length``, the one in use first.

    Args:
        kernel: "forward" or "backward".
        problem: the call to time; tiles with slabs wider than its value are omitted.
        length: the number of pixels on a line.
        device: the GPU.
    """
    lists = (_FLOAT32 if problem.dtype == "float32" else _HALF)[kernel]
    fitting = next((longest for longest in lists if length <= longest), max(lists))
    listed = [Tile(*sizes) for sizes in lists[fitting]]
    found = dict.fromkeys([choose_tile(kernel, problem, length, device), *listed])
    return [
        tile
        for tile in found
        if tile.block_c <= max(16, problem.value_channels)
        and (not tile.descriptors or has_descriptors(tile, problem, length, device))
    ]
