"""The criss-cross modules, to be dropped into any network.

Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, sections 3.2 (criss-cross attention) and 3.3 (recurrence).
Shapes: N images, C channels, D = query channels, S one to three spatial sizes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from kernels import criss_cross_attention
from models.layers import residual_weight


class CrissCrossAttention(nn.Module):
    """Every position gathers context from its own row and column (and time line in 3D), once.

        y = gamma * attention(query(x), key(x), value(x)) + x

    The same weights serve signals, images and clips: only the attention sees how many spatial axes there are.

    Args:
        channels: C of the input and of the output.
        query_channels: D; C // 8 as in the paper if not given.
        axes: spatial axes to attend along, as in :func:`kernels.criss_cross_attention`; all of them by default.
        gamma: "learned" as in the authors' code or "fixed" at 1, see :func:`models.layers.residual_weight`.
        backend: of :func:`kernels.criss_cross_attention`.
    """

    def __init__(
        self,
        channels: int,
        *,
        query_channels: int | None = None,
        axes: Sequence[int] | None = None,
        gamma: str = "learned",
        backend: str = "auto",
    ):
        super().__init__()
        query_channels = query_channels or max(channels // 8, 1)
        self.query_conv = nn.Conv2d(channels, query_channels, kernel_size=1)
        self.key_conv = nn.Conv2d(channels, query_channels, kernel_size=1)
        self.value_conv = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = residual_weight(gamma)
        self.axes = None if axes is None else tuple(axes)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *S) -> (N, C, *S), one to three spatial sizes S."""
        query, key, value = (self._project(conv, x) for conv in (self.query_conv, self.key_conv, self.value_conv))
        context = criss_cross_attention(query, key, value, axes=self.axes, backend=self.backend)
        if self.gamma is not None:
            context = self.gamma.to(context.dtype) * context
        return context + x

    @staticmethod
    def _project(conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A 1x1 convolution over any number of spatial axes, seen as two: a view in both memory formats."""
        if x.ndim == 4:
            return conv(x)
        flat = x.flatten(2, -2) if x.ndim > 4 else x.unsqueeze(2)  # (N, C, all but the last axis, last axis)
        return conv(flat).view(x.shape[0], conv.out_channels, *x.shape[2:])


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
