"""A whole picture in a frame of fixed size: scaled to fit, centred, turned; and the way back for its labels."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


class Placement(NamedTuple):
    """How a picture lies in a frame.

    Attributes:
        picture: (H, W), pixels.
        frame: (H, W), pixels.
        grown: factor on what the frame shows; 1 is the smallest frame that holds the whole upright picture.
        angle: in degrees.
    """

    picture: tuple[int, int]
    frame: tuple[int, int]
    grown: float = 1.0
    angle: float = 0.0

    @property
    def step(self) -> float:
        """Picture pixels per frame pixel."""
        return self.grown * max(side / frame for side, frame in zip(self.picture, self.frame, strict=True))


def resample(images: Tensor, placement: Placement, *, mode: str = "bilinear") -> Tensor:
    """Draw pictures into the frame: (N, C, H, W) float -> (N, C, *frame), zeros beside them."""
    height, width = placement.picture
    y, x = (torch.arange(side, device=images.device) + 0.5 - side / 2 for side in placement.frame)
    y, x = torch.meshgrid(y * placement.step, x * placement.step, indexing="ij")
    turn = math.radians(placement.angle)
    across = x * math.cos(turn) - y * math.sin(turn)
    down = x * math.sin(turn) + y * math.cos(turn)
    grid = torch.stack([across / (width / 2), down / (height / 2)], dim=-1)  # [-1, 1] from edge to edge
    grid = grid.to(images.dtype).expand(len(images), -1, -1, -1)
    return grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def restore(maps: Tensor, placement: Placement) -> Tensor:
    """Back to the picture, nearest neighbour: (N, C, *frame) of an upright placement -> (N, C, H, W)."""
    for dim, side, frame in zip((-2, -1), placement.picture, placement.frame, strict=True):
        centres = (torch.arange(side, device=maps.device) + 0.5 - side / 2) / placement.step + frame / 2
        maps = maps.index_select(dim, centres.long().clamp(0, frame - 1))
    return maps
