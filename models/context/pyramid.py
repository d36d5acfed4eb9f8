"""Pooling pyramids: PSPNet's and DeepLabv3's context modules."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ..layers import conv_bn_relu


class PyramidPooling(nn.Module):
    """Averages over grids of several sizes, put beside the input: Zhao et al., CVPR 2017, arXiv:1612.01105.

    Args:
        channels: C of the input.
        bins: cells of each grid, per side.
        width: of each branch; C divided by the number of grids if not given.
        out_channels: of the output; C if not given.
        align_corners: of the bilinear upsampling of the grids.
    """

    def __init__(
        self,
        channels: int,
        *,
        bins: Sequence[int] = (1, 2, 3, 6),
        width: int | None = None,
        out_channels: int | None = None,
        align_corners: bool = True,
    ):
        super().__init__()
        self.bins = tuple(bins)
        self.align_corners = align_corners
        width = width or channels // len(self.bins)
        self.branches = nn.ModuleList(conv_bn_relu(channels, width, kernel_size=1) for _ in self.bins)
        self.fuse = conv_bn_relu(channels + width * len(self.bins), out_channels or channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H, W)."""
        pooled = [branch(_average_cells(x, bins)) for branch, bins in zip(self.branches, self.bins, strict=True)]
        return self.fuse(torch.cat([x, *(_resize(level, x, self.align_corners) for level in pooled)], dim=1))


class AtrousPyramid(nn.Module):
    """Dilated convolutions beside each other and the image's average: Chen et al., 2017, arXiv:1706.05587 (ASPP).

    Args:
        channels: C of the input.
        width: of each branch; C / 2 if not given, DeepLabv3's 256 for C = 512.
        out_channels: of the output; C if not given.
        dilations: of the 3x3 branches; (12, 24, 36) belongs to output stride 8.
        fuse_kernel_size: of the convolution that puts the branches together.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int | None = None,
        out_channels: int | None = None,
        dilations: Sequence[int] = (12, 24, 36),
        fuse_kernel_size: int = 1,
    ):
        super().__init__()
        width = width or channels // 2
        self.local = conv_bn_relu(channels, width, kernel_size=1)
        self.dilated = nn.ModuleList(conv_bn_relu(channels, width, dilation=dilation) for dilation in dilations)
        self.image = conv_bn_relu(channels, width, kernel_size=1)
        branches = 2 + len(self.dilated)
        self.fuse = conv_bn_relu(width * branches, out_channels or channels, kernel_size=fuse_kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        image = _resize(self.image(adaptive_avg_pool2d(x, 1)), x)
        return self.fuse(torch.cat([self.local(x), *(branch(x) for branch in self.dilated), image], dim=1))


def _average_cells(x: Tensor, bins: int) -> Tensor:
    """Adaptive average pooling to bins x bins cells."""
    if bins == 1 or not torch.compiler.is_exporting():
        return adaptive_avg_pool2d(x, bins)
    # torch.export writes the cells of the size it sees into the graph: products with the cells' weights take any.
    rows, columns = (_cell_weights(size, bins, like=x) for size in x.shape[-2:])
    return rows @ x @ columns.mT


def _cell_weights(size: int, bins: int, *, like: Tensor) -> Tensor:
    """(bins, size): 1 / n at the n positions that a cell averages. Cells overlap where bins do not divide size."""
    cell = torch.arange(bins, device=like.device).unsqueeze(1)
    start, stop = cell * size // bins, ((cell + 1) * size + bins - 1) // bins
    position = torch.arange(size, device=like.device)
    inside = (position >= start) & (position < stop)
    return inside.to(like.dtype) / (stop - start).to(like.dtype)


def _resize(x: Tensor, like: Tensor, align_corners: bool = True) -> Tensor:
    return interpolate(x, like.shape[-2:], mode="bilinear", align_corners=align_corners)
