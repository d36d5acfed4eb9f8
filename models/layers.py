"""Parts that several modules share."""

import torch
from torch import nn

MAX_RECURRENCE = 64


def conv_bn_relu(
    in_channels: int, out_channels: int, *, kernel_size: int = 3, dilation: int = 1, negative_slope: float = 0.0
) -> nn.Sequential:
    """Convolution, batch norm, ReLU (leaky with a ``negative_slope``); the size stays the same."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding="same", dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(negative_slope, inplace=True) if negative_slope else nn.ReLU(inplace=True),
    )


def check_recurrence(recurrence: int) -> None:
    """Raise ValueError for a number of loops that is none, or that would not end: two reach every pixel."""
    if not 0 <= recurrence <= MAX_RECURRENCE:
        raise ValueError(f"recurrence is {recurrence}: give the number of loops, 0 or more (at most {MAX_RECURRENCE})")


def residual_weight(gamma: str) -> nn.Parameter | None:
    """The factor of an attention's output before the residual is added.

    "learned" is the authors' code: one parameter that starts at 0, so that the module starts as the identity and
    its projections get no gradient in the very first step. "fixed" is the paper's equation 2: 1, hence None.
    """
    if gamma not in ("learned", "fixed"):
        raise ValueError(f"gamma is {gamma!r}: choose 'learned' (starts at 0) or 'fixed' (1)")
    return nn.Parameter(torch.zeros(1)) if gamma == "learned" else None
