"""Attention along rows and along columns in turn: the HV baselines of the CCNet paper's Table 4."""

from typing import Any

from torch import Tensor, nn

from ..criss_cross import CrissCrossAttention

_ROWS, _COLUMNS = (1,), (0,)


class HorizontalVertical(nn.Sequential):
    """Attention within rows, then within columns, each with its own projections and residual ("HV").

    The shape (N, C, H, W) is unchanged.

    Args:
        channels: number of input and output channels C.
        **attention: keyword arguments of :class:`models.CrissCrossAttention`.
    """

    def __init__(self, channels: int, **attention: Any):
        super().__init__(*(CrissCrossAttention(channels, axes=axes, **attention) for axes in (_ROWS, _COLUMNS)))


class ParallelHorizontalVertical(nn.Module):
    """The sum of rows-then-columns and columns-then-rows, two branches with separate weights ("HV & VH").

    Args:
        channels: number of input and output channels C.
        **attention: keyword arguments of :class:`models.CrissCrossAttention`.
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
