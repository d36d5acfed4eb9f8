"""Pooling pyramids: PSPNet's and DeepLabv3's context modules."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from models.layers import conv_bn_relu


class PyramidPooling(nn.Module):
    """Averages over grids of several sizes, put beside the input: Zhao et al., CVPR 2017, arXiv:1612.01105.

    Args:
        channels: C of the input, and of the output unless ``out_channels`` is given.
        bins: cells of each grid, per side.
        out_channels: of the output.
        width: of each branch; C divided among the branches if not given.
    """

    def __init__(
        self,
        channels: int,
        *,
        bins: Sequence[int] = (1, 2, 3, 6),
        out_channels: int | None = None,
        width: int | None = None,
    ):
        super().__init__()
        self.bins = tuple(bins)
        width = width or channels // len(self.bins)
        self.branches = nn.ModuleList(conv_bn_relu(channels, width, kernel_size=1) for _ in self.bins)
        self.fuse = conv_bn_relu(channels + width * len(self.bins), out_channels or channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H, W)."""
        pooled = [branch(adaptive_avg_pool2d(x, bins)) for branch, bins in zip(self.branches, self.bins, strict=True)]
        return self.fuse(torch.cat([x, *(_resize(level, x) for level in pooled)], dim=1))


class AtrousPyramid(nn.Module):
    """Dilated convolutions beside each other and the image's average: Chen et al., 2017, arXiv:1706.05587 (ASPP).

    Args:
        channels: C of input and output.
        width: of each branch; C / 2 if not given, DeepLabv3's 256 for C = 512.
        dilations: of the 3x3 branches; (12, 24, 36) belongs to output stride 8.
    """

    def __init__(self, channels: int, *, width: int | None = None, dilations: Sequence[int] = (12, 24, 36)):
        super().__init__()
        width = width or channels // 2
        self.local = conv_bn_relu(channels, width, kernel_size=1)
        self.dilated = nn.ModuleList(conv_bn_relu(channels, width, dilation=dilation) for dilation in dilations)
        self.image = conv_bn_relu(channels, width, kernel_size=1)
        self.fuse = conv_bn_relu(width * (2 + len(self.dilated)), channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        image = _resize(self.image(adaptive_avg_pool2d(x, 1)), x)
        return self.fuse(torch.cat([self.local(x), *(branch(x) for branch in self.dilated), image], dim=1))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)
