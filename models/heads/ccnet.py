"""The CCNet head: Huang et al., TPAMI 2020, arXiv:1811.11721, section 3.1 and Fig. 2."""

import torch
from torch import Tensor, nn

from models.criss_cross import RecurrentCrissCrossAttention
from models.layers import conv_bn_relu


class CrissCrossHead(nn.Module):
    """Reduce, attend R times, project, put beside the backbone's features, classify.

    Layer by layer as in the authors' code, with batch norm and ReLU for their in-place activated batch norm.
    ``recurrence=0`` leaves the attention out: the dilated FCN that the paper's tables start from.

    Args:
        in_channels: of the backbone's last features.
        num_classes: K.
        channels: width of the head; the paper's is 512.
        recurrence: R, the number of loops through the one shared attention module.
        query_channels, gamma, backend: of :class:`models.CrissCrossAttention`.
        dropout: share of channels dropped before the classifier.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 512,
        recurrence: int = 2,
        query_channels: int | None = None,
        gamma: str = "learned",
        backend: str = "auto",
        dropout: float = 0.1,
    ):
        super().__init__()
        self.context_channels = channels
        self.reduce = conv_bn_relu(in_channels, channels)
        self.attend = RecurrentCrissCrossAttention(
            channels, recurrence=recurrence, query_channels=query_channels, gamma=gamma, backend=backend
        )
        self.project = conv_bn_relu(channels, channels)
        self.bottleneck = conv_bn_relu(in_channels + channels, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w) -> logits (N, K, h, w) and the attention's output (N, channels, h, w)."""
        context = self.attend(self.reduce(features))
        fused = self.bottleneck(torch.cat([features, self.project(context)], dim=1))
        return self.classify(self.dropout(fused)), context
