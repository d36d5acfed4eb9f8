"""The criss-cross modules, to be dropped into any network.

Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, sections 3.2 (criss-cross attention) and 3.3 (recurrence).
Shapes: N images, C channels, D = query channels, S one to three spatial sizes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from kernels import criss_cross_attention
from models.layers import residual_weight

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class CrissCrossAttention(nn.Module):
    """Every position gathers context from its own row and column (and time line in 3D), once.

        y = gamma * attention(query(x), key(x), value(x)) + x

    Args:
        channels: C of the input and of the output.
        query_channels: D; C // 8 as in the paper if not given.
        axes: spatial axes to attend along, as in :func:`kernels.criss_cross_attention`; all of them by default.
        gamma: "learned" as in the authors' code or "fixed" at 1, see :func:`models.layers.residual_weight`.
        spatial_dims: 1, 2 or 3 spatial axes.
        backend: of :func:`kernels.criss_cross_attention`.
    """

    def __init__(
        self,
        channels: int,
        *,
        query_channels: int | None = None,
        axes: Sequence[int] | None = None,
        gamma: str = "learned",
        spatial_dims: int = 2,
        backend: str = "auto",
    ):
        super().__init__()
        if spatial_dims not in _CONVOLUTIONS:
            raise ValueError(f"spatial_dims is {spatial_dims}: choose 1, 2 or 3")
        query_channels = query_channels or max(channels // 8, 1)
        convolution = _CONVOLUTIONS[spatial_dims]
        self.query_conv = convolution(channels, query_channels, kernel_size=1)
        self.key_conv = convolution(channels, query_channels, kernel_size=1)
        self.value_conv = convolution(channels, channels, kernel_size=1)
        self.gamma = residual_weight(gamma)
        self.axes = None if axes is None else tuple(axes)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *S) -> (N, C, *S)."""
        context = criss_cross_attention(
            self.query_conv(x), self.key_conv(x), self.value_conv(x), axes=self.axes, backend=self.backend
        )
        if self.gamma is not None:
            context = self.gamma * context
        return context + x


class RecurrentCrissCrossAttention(nn.Module):
    """R loops of one shared :class:`CrissCrossAttention`; R = 2 connects every pair of pixels.

    Args:
        channels: C of the input and of the output.
        recurrence: R. 0 is the identity and has no parameters.
        **attention: arguments of :class:`CrissCrossAttention`.
    """

    def __init__(self, channels: int, *, recurrence: int = 2, **attention):
        super().__init__()
        if recurrence < 0:
            raise ValueError(f"recurrence is {recurrence}: give the number of loops, 0 or more")
        self.recurrence = recurrence
        self.attention = CrissCrossAttention(channels, **attention) if recurrence else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *S) -> (N, C, *S)."""
        for _ in range(self.recurrence):
            x = self.attention(x)
        return x
