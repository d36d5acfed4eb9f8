"""Letterboxing: fit a whole image, centred, into a frame of fixed size, and map predictions back."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


class Placement(NamedTuple):
    """Placement of an image in a frame.

    Attributes:
        image: size of the image, (H, W) in pixels.
        frame: size of the frame, (H, W) in pixels.
        zoom_out: factor by which the image is shrunk, relative to the largest size at which it fits unrotated.
        angle: rotation of the image in the frame, in degrees.
    """

    image: tuple[int, int]
    frame: tuple[int, int]
    zoom_out: float = 1.0
    angle: float = 0.0

    @property
    def step(self) -> float:
        """Image pixels per frame pixel."""
        return self.zoom_out * max(side / frame for side, frame in zip(self.image, self.frame, strict=True))


def resample(images: Tensor, placement: Placement, *, mode: str = "bilinear") -> Tensor:
    """Resample images into a frame that is zero outside them: float (N, C, H, W) -> (N, C, *frame).

    Args:
        images: float (N, C, H, W), where (H, W) is ``placement.image``.
        placement: the placement of each image in its frame.
        mode: "bilinear" or "nearest".
    """
    height, width = placement.image
    y, x = (torch.arange(side, device=images.device) + 0.5 - side / 2 for side in placement.frame)
    y, x = torch.meshgrid(y * placement.step, x * placement.step, indexing="ij")
    angle = math.radians(placement.angle)
    across = x * math.cos(angle) - y * math.sin(angle)
    down = x * math.sin(angle) + y * math.cos(angle)
    grid = torch.stack([across / (width / 2), down / (height / 2)], dim=-1)  # [-1, 1] from edge to edge
    grid = grid.to(images.dtype).expand(len(images), -1, -1, -1)
    return grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def restore(maps: Tensor, placement: Placement) -> Tensor:
    """Map predictions back to an unrotated image by nearest neighbour: (N, C, *frame) -> (N, C, H, W).

    Only frame pixels whose centre lies in the image are used: the others are padding, ignored in training.
    """
    for dim, side, frame in zip((-2, -1), placement.image, placement.frame, strict=True):
        centres = (torch.arange(side, device=maps.device) + 0.5 - side / 2) / placement.step + frame / 2
        half = side / 2 / placement.step
        first, last = math.ceil(frame / 2 - half - 0.5), math.floor(frame / 2 + half - 0.5)
        maps = maps.index_select(dim, centres.long().clamp(first, last))
    return maps
