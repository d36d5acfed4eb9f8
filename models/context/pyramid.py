"""The pyramid context modules of PSPNet and DeepLabv3."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from ...kernels.torch_ops import transforms
from ..backbone import replace_dilated_convolutions
from ..layers import conv_bn_relu, resize


class PyramidPooling(nn.Module):
    """Pyramid pooling: average pooling to grids of several sizes, concatenated with the input and fused.

    Zhao et al., Pyramid Scene Parsing Network, CVPR 2017, arXiv:1612.01105, section 3.2.

    Args:
        channels: number of input channels C.
        bins: number of bins per side of each grid.
        width: number of channels of each branch; C divided by the number of grids by default.
        out_channels: number of output channels; C by default.
        align_corners: whether bilinear upsampling of the pooled grids aligns corners.
    """

    pools = True  # has global pooling followed by batch norm

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
        if min(bins, default=0) < 1:
            raise ValueError(f"bins is {list(bins)}: set one or more numbers of at least 1")
        self.bins = tuple(bins)
        self.align_corners = align_corners
        width = width or channels // len(self.bins)
        self.branches = nn.ModuleList(conv_bn_relu(channels, width, kernel_size=1) for _ in self.bins)
        self.fuse = conv_bn_relu(channels + width * len(self.bins), out_channels or channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module: (N, C, H, W) -> (N, out_channels, H, W)."""
        levels = [
            resize(branch(_average_cells(x, bins)), x.shape[-2:], align_corners=self.align_corners)
            for branch, bins in zip(self.branches, self.bins, strict=True)
        ]
        return self.fuse(torch.cat([x, *levels], dim=1))


class AtrousPyramid(nn.Module):
    """Parallel dilated convolutions and global average pooling, fused (atrous spatial pyramid pooling, ASPP).

    Chen et al., Rethinking Atrous Convolution, 2017, arXiv:1706.05587, section 3.3.

    Args:
        channels: number of input channels C.
        width: number of channels of each branch; C / 2 by default, 256 as in DeepLabv3 for C = 512.
        out_channels: number of output channels; C by default.
        dilations: dilation of each 3x3 branch; (12, 24, 36) is DeepLabv3's choice for output stride 8.
        fuse_kernel_size: kernel size of the convolution that fuses the branches.
    """

    pools = True  # has global pooling followed by batch norm

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
        if min(dilations, default=1) < 1:
            raise ValueError(f"dilations is {list(dilations)}: set numbers of at least 1")
        width = width or channels // 2
        self.local = conv_bn_relu(channels, width, kernel_size=1)
        self.dilated = nn.ModuleList(conv_bn_relu(channels, width, dilation=dilation) for dilation in dilations)
        replace_dilated_convolutions(self.dilated)
        self.image = conv_bn_relu(channels, width, kernel_size=1)
        branches = 2 + len(self.dilated)
        self.fuse = conv_bn_relu(width * branches, out_channels or channels, kernel_size=fuse_kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module: (N, C, H, W) -> (N, out_channels, H, W)."""
        image = resize(self.image(adaptive_avg_pool2d(x, 1)), x.shape[-2:])
        return self.fuse(torch.cat([self.local(x), *(branch(x) for branch in self.dilated), image], dim=1))


def _average_cells(x: Tensor, bins: int) -> Tensor:
    """Apply adaptive average pooling: (N, C, H, W) -> (N, C, bins, bins)."""
    if bins == 1 or not transforms.is_exporting():
        return adaptive_avg_pool2d(x, bins)
    # torch.export would hard-code the pooling windows of the traced size; matrix products keep the size dynamic.
    rows, columns = (_cell_weights(size, bins, like=x) for size in x.shape[-2:])
    return rows @ x @ columns.mT


def _cell_weights(size: int, bins: int, *, like: Tensor) -> Tensor:
    """Return the (bins, size) pooling matrix, with 1 / n at the n positions of a bin; bins may overlap."""
    cell = torch.arange(bins, device=like.device).unsqueeze(1)
    start, stop = cell * size // bins, ((cell + 1) * size + bins - 1) // bins
    position = torch.arange(size, device=like.device)
    inside = (position >= start) & (position < stop)
    return inside.to(like.dtype) / (stop - start).to(like.dtype)
