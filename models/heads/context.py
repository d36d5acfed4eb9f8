"""The head with an exchangeable context module: Huang et al., TPAMI 2020, arXiv:1811.11721, section 3.1, Fig. 2."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from ..criss_cross import CrissCrossAttention, RecurrentCrissCrossAttention
from ..layers import check_recurrence, conv_bn_relu
from .classifier import MainHead


class ContextFeatures(nn.Module):
    """Reduces the features, applies the context module, projects, concatenates with the input and fuses.

    It follows the CCNet authors' code layer by layer, with batch norm and ReLU instead of in-place activated batch
    norm. The networks in Table 4 of the paper differ only in ``context``. Without a context module (``recurrence=0``),
    it is the dilated FCN that the paper uses as its baseline.

    Args:
        in_channels: width of the backbone's last features.
        context: called with ``channels``; returns a module that preserves the shape (N, channels, h, w). None is
            allowed if ``recurrence`` is 0.
        channels: width of the head; 512 in the paper.
        recurrence: R, the number of times the shared context module is applied.
        negative_slope: negative slope of the activations; 0 for plain ReLU, 0.01 for the authors' published weights.

    Attributes:
        context_channels: width of the context features that :meth:`forward` returns.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        context: Callable[[int], nn.Module] | None,
        channels: int = 512,
        recurrence: int = 1,
        negative_slope: float = 0.0,
    ):
        super().__init__()
        check_recurrence(recurrence)
        self.context_channels = channels
        self.recurrence = recurrence
        self.reduce = conv_bn_relu(in_channels, channels, negative_slope=negative_slope)
        if recurrence and context is None:
            raise ValueError(f"recurrence is {recurrence}, but context is null: set the module to apply")
        self.context = context(channels) if context and recurrence else nn.Identity()
        # Known from now on, although torch.compile and others may wrap the module.
        self.context_takes_clips = isinstance(self.context, CrissCrossAttention | RecurrentCrissCrossAttention)
        self.project = conv_bn_relu(channels, channels, negative_slope=negative_slope)
        self.bottleneck = conv_bn_relu(in_channels + channels, channels, negative_slope=negative_slope)

    def forward(self, features: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """Map (N, in_channels, h, w) to fused features and the context module's output, each (N, channels, h, w).

        For clips of T = ``frames`` frames each, the batch axis holds all frames, clip by clip. Criss-cross attention
        processes whole clips (N / T, channels, T, h, w), and every other context module each frame independently.
        """
        context = self.reduce(features)
        if not self.context_takes_clips:
            frames = None
        if frames:
            context = rearrange(context, "(n t) c h w -> n c t h w", t=frames)
        for _ in range(self.recurrence):
            context = self.context(context)
        if frames:
            context = rearrange(context, "n c t h w -> (n t) c h w")
        return self.bottleneck(torch.cat([features, self.project(context)], dim=1)), context


class ContextHead(ContextFeatures, MainHead):
    """:class:`ContextFeatures` followed by a classifier.

    Args:
        in_channels, context, channels, recurrence, negative_slope: see :class:`ContextFeatures`.
        num_classes: number of classes K.
        dropout: fraction of channels dropped before the classifier.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        context: Callable[[int], nn.Module] | None,
        channels: int = 512,
        recurrence: int = 1,
        dropout: float = 0.1,
        negative_slope: float = 0.0,
    ):
        super().__init__(
            in_channels, context=context, channels=channels, recurrence=recurrence, negative_slope=negative_slope
        )
        self.add_classifier(channels, num_classes, dropout)

    def forward(self, features: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """Map (N, in_channels, h, w) to logits (N, K, h, w) and context features (N, channels, h, w)."""
        fused, context = super().forward(features, frames)
        return self.scores(fused), context
