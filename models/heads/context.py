"""The head that all context modules share: Huang et al., TPAMI 2020, arXiv:1811.11721, section 3.1 and Fig. 2."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from ..layers import check_recurrence, conv_bn_relu


class ContextFeatures(nn.Module):
    """Reduce, gather context, project, put beside the backbone's features, fuse.

    Layer by layer as in the CCNet authors' code, with batch norm and ReLU for their in-place activated batch
    norm. Networks of the paper's Table 4 differ in ``context`` alone; with ``recurrence=0`` there is none, which
    is the dilated FCN that the paper's tables start from.

    Args:
        in_channels: of the backbone's last features.
        context: called with ``channels``; gives a module (N, channels, h, w) -> (N, channels, h, w).
        channels: width of the head; the paper's is 512.
        recurrence: R, the number of times that the one context module is applied.
        negative_slope: of the activations; the authors' published weights need 0.01, 0 is the ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        context: Callable[[int], nn.Module],
        channels: int = 512,
        recurrence: int = 1,
        negative_slope: float = 0.0,
    ):
        super().__init__()
        check_recurrence(recurrence)
        self.context_channels = channels
        self.recurrence = recurrence
        self.reduce = conv_bn_relu(in_channels, channels, negative_slope=negative_slope)
        self.context = context(channels) if recurrence else None
        self.project = conv_bn_relu(channels, channels, negative_slope=negative_slope)
        self.bottleneck = conv_bn_relu(in_channels + channels, channels, negative_slope=negative_slope)

    def forward(self, features: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w) -> fused features and the context module's own, (N, channels, h, w) both.

        With ``frames`` T, N counts the frames of clips one after the other, and the context module sees whole clips,
        (N / T, channels, T, h, w).
        """
        context = self.reduce(features)
        if frames:
            context = rearrange(context, "(n t) c h w -> n c t h w", t=frames)
        for _ in range(self.recurrence):
            context = self.context(context)
        if frames:
            context = rearrange(context, "n c t h w -> (n t) c h w")
        return self.bottleneck(torch.cat([features, self.project(context)], dim=1)), context


class ContextHead(ContextFeatures):
    """:class:`ContextFeatures` and a classifier.

    Args:
        in_channels, context, channels, recurrence, negative_slope: of :class:`ContextFeatures`.
        num_classes: K.
        dropout: share of channels dropped before the classifier.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        context: Callable[[int], nn.Module],
        channels: int = 512,
        recurrence: int = 1,
        dropout: float = 0.1,
        negative_slope: float = 0.0,
    ):
        super().__init__(
            in_channels, context=context, channels=channels, recurrence=recurrence, negative_slope=negative_slope
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, features: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w) -> logits (N, K, h, w) and the context features (N, channels, h, w)."""
        fused, context = super().forward(features, frames)
        return self.classify(self.dropout(fused)), context
