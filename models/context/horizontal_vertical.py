"""Attention along rows and columns one after the other: the HV baselines of the paper's Table 4."""

from torch import Tensor, nn

from ..criss_cross import CrissCrossAttention

_ROWS, _COLUMNS = (1,), (0,)


class HorizontalVertical(nn.Sequential):
    """Attention within rows, then within columns, each with projections and a residual of its own ("HV").

    Args:
        channels: C of input and output.
        **attention: arguments of :class:`models.CrissCrossAttention`.
    """

    def __init__(self, channels: int, **attention):
        super().__init__(*(CrissCrossAttention(channels, axes=axes, **attention) for axes in (_ROWS, _COLUMNS)))


class ParallelHorizontalVertical(nn.Module):
    """The sum of rows-then-columns and columns-then-rows, two branches with their own weights ("HV & VH").

    Args:
        channels: C of input and output.
        **attention: arguments of :class:`models.CrissCrossAttention`.
    """

    def __init__(self, channels: int, **attention):
        super().__init__()
        self.hv, self.vh = (
            nn.Sequential(*(CrissCrossAttention(channels, axes=axes, **attention) for axes in order))
            for order in ((_ROWS, _COLUMNS), (_COLUMNS, _ROWS))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.hv(x) + self.vh(x)
