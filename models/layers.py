"""Layers and checks shared by several networks, and a context that skips random initial weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

MAX_RECURRENCE = 64
_DRAWS = ("kaiming_uniform_", "normal_", "trunc_normal_", "uniform_")  # of torch.nn.init, and of tensors


def conv_bn_relu(
    in_channels: int, out_channels: int, *, kernel_size: int = 3, dilation: int = 1, negative_slope: float = 0.0
) -> nn.Sequential:
    """Return a size-preserving convolution followed by batch norm and ReLU (leaky if ``negative_slope`` is not 0)."""
    padding = dilation * (kernel_size // 2)  # a number, because quantisers of exported graphs do not support "same"
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(negative_slope, inplace=True) if negative_slope else nn.ReLU(inplace=True),
    )


def resize(x: Tensor, size: torch.Size, *, align_corners: bool = True) -> Tensor:
    """Resize bilinearly: (N, C, H, W) -> (N, C, *size)."""
    return interpolate(x, size, mode="bilinear", align_corners=align_corners)


def check_recurrence(recurrence: int) -> None:
    """Raise ValueError unless an integer from 0 to MAX_RECURRENCE; two loops already connect every pair of pixels."""
    if not hasattr(recurrence, "__index__") or not 0 <= recurrence <= MAX_RECURRENCE:
        raise ValueError(
            f"recurrence is {recurrence}: set the number of loops, from 0 to {MAX_RECURRENCE} (the paper uses 2)"
        )


def residual_weight(gamma: str) -> nn.Parameter | None:
    """Return the weight that scales an attention output before the residual is added; None stands for a constant 1.

    Args:
        gamma: "learned" for a scalar parameter initialised to 0, as in the authors' code, with which the module starts
            as the identity and its projections receive no gradient in the first step; "fixed" for 1, as in equation 2
            of the paper.

    Raises:
        ValueError: ``gamma`` is neither of them.
    """
    if gamma not in ("learned", "fixed"):
        raise ValueError(f"gamma is {gamma!r}: choose 'learned' (starts at 0) or 'fixed' (1)")
    return nn.Parameter(torch.zeros(1)) if gamma == "learned" else None


class Uninitialised(TorchFunctionMode):
    """Build networks in this context without drawing their random weights, which would take most of the time.

    Load all weights afterwards: until then, their values are arbitrary.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.__name__ in _DRAWS:
            return (*args, *(kwargs or {}).values())[0]  # torch.nn.init names the tensor
        return func(*args, **(kwargs or {}))
