"""The tile sizes of a launch: pinned in ``kernels/configs`` where they have been measured, else chosen by a rule.

Nothing is autotuned during training: the choice depends only on the call's shape, the device and the version of Triton,
so that runs are bitwise reproducible.
"""

from .problem import Device, Problem, Tile, fitted, has_descriptors
from .tile_rule import rule_tile
from .tile_tables import pinned_tiles


def choose_tile(kernel: str, problem: Problem, length: int, device: Device) -> Tile:
    """Return the pinned tile, or the rule's if there is none, with BLOCK_C limited to the value channels."""
    pinned = (fitted(tile, problem) for tile in pinned_tiles(kernel, problem, length, device.name))
    usable = (tile for tile in pinned if not tile.descriptors or has_descriptors(tile, problem, length, device))
    return next(usable, None) or fitted(rule_tile(kernel, problem, length, device), problem)
