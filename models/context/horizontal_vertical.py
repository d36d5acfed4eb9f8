"""Attention along one axis and then the other: the HV baselines in Table 4 of the CCNet paper."""

from typing import Any

from torch import Tensor, nn

from ..criss_cross import CrissCrossAttention

_ROWS, _COLUMNS = (1,), (0,)


class HorizontalVertical(nn.Sequential):
    """Attention within rows, then within columns, each with its own projections and residual connection ("HV").

    The shape (N, C, H, W) is unchanged.

    Args:
        channels: number of input and output channels C.
        **attention: keyword arguments of :class:`~ccnet.models.CrissCrossAttention`.
    """

    def __init__(self, channels: int, **attention: Any):
        super().__init__(*(CrissCrossAttention(channels, axes=axes, **attention) for axes in (_ROWS, _COLUMNS)))


class ParallelHorizontalVertical(nn.Module):
    """Two parallel branches, rows then columns and columns then rows, with separate weights; summed ("HV & VH").

    Args:
        channels: number of input and output channels C.
        **attention: keyword arguments of :class:`~ccnet.models.CrissCrossAttention`.
    """

    def __init__(self, channels: int, **attention: Any):
        super().__init__()
        self.hv, self.vh = (
            nn.Sequential(*(CrissCrossAttention(channels, axes=axes, **attention) for axes in order))
            for order in ((_ROWS, _COLUMNS), (_COLUMNS, _ROWS))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module; the shape (N, C, H, W) is unchanged."""
        return self.hv(x) + self.vh(x)
