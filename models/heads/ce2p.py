"""The head of CE2P: Ruan et al., Devil in the Details: Towards Accurate Single and Multiple Human Parsing, AAAI 2019,
arXiv:1809.05996, section 3 and Fig. 2.

Layer by layer as in the authors' code, with batch norm and ReLU for their in-place activated batch norm. The CCNet
paper (section 4.5) puts recurrent criss-cross attention where CE2P has its pyramid; here either is ``context``.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..context.pyramid import PyramidPooling
from ..layers import conv_bn_relu

_DETAIL = 48  # channels that the decoder takes from the first stage


class ParsingOutput(NamedTuple):
    """Logits at the first stage's size, and the context features at the last stage's.

    Attributes:
        fused: (N, K, h, w), from the decoder's and the edge branch's features; the prediction.
        decoder: (N, K, h, w), from the decoder's features alone.
        edge: (N, 2, h, w), no edge and edge.
        context: (N, context_channels, h', w').
    """

    fused: Tensor
    decoder: Tensor
    edge: Tensor
    context: Tensor


class CE2PHead(nn.Module):
    """Context, a decoder at high resolution, an edge branch, and their fusion.

    Args:
        in_channels: of the four stages of the backbone, strides 4, 8, 16 and 16.
        num_classes: K.
        context: called with ``in_channels`` and ``channels`` of the last stage; gives a module with
            ``context_channels`` that maps it to (features (N, channels, h, w), context features). See
            :class:`PyramidFeatures` and :class:`models.heads.context.ContextFeatures`.
        channels: width of the context; 512 in the paper. The branches have half of it.
        dropout: share of channels dropped before the last classifier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        context: Callable[..., nn.Module],
        channels: int = 512,
        dropout: float = 0.1,
    ):
        super().__init__()
        if len(in_channels) != 4:
            raise ValueError(
                f"CE2P reads four stages of the backbone, got {len(in_channels)}: give out_indices=[-4, -3, -2, -1]"
            )
        width = channels // 2
        self.context = context(in_channels=in_channels[-1], channels=channels)
        self.context_channels = self.context.context_channels
        self.decoder = Decoder(in_channels[0], channels, num_classes, width=width)
        self.edge = EdgeBranch(in_channels[:3], width=width)
        self.fuse = conv_bn_relu(4 * width, width, kernel_size=1)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, stages: Sequence[Tensor]) -> ParsingOutput:
        """Four feature maps (N, in_channels[i], h_i, w_i) -> see :class:`ParsingOutput`."""
        features, context = self.context(stages[-1])
        decoder_logits, decoded = self.decoder(stages[0], features)
        edge_logits, edges = self.edge(stages[:3])
        fused = self.fuse(torch.cat([decoded, edges], dim=1))
        return ParsingOutput(self.classify(self.dropout(fused)), decoder_logits, edge_logits, context)


class PyramidFeatures(nn.Module):
    """CE2P's own context: pyramid pooling straight on the backbone's features, each branch ``channels`` wide.

    Args:
        in_channels: of the backbone's last features.
        channels: of the result.
        bins: cells of each grid, per side.
    """

    def __init__(self, in_channels: int, *, channels: int = 512, bins: Sequence[int] = (1, 2, 3, 6)):
        super().__init__()
        self.context_channels = channels
        self.pyramid = PyramidPooling(in_channels, bins=bins, out_channels=channels, width=channels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w) -> features and context features, the same (N, channels, h, w) twice."""
        pooled = self.pyramid(features)
        return pooled, pooled


class Decoder(nn.Module):
    """The context features at the first stage's resolution, beside that stage's details.

    Args:
        detail_channels: of the first stage.
        context_channels: of the context features.
        num_classes: K.
        width: of the result.
    """

    def __init__(self, detail_channels: int, context_channels: int, num_classes: int, *, width: int):
        super().__init__()
        self.reduce = conv_bn_relu(context_channels, width, kernel_size=1)
        self.detail = conv_bn_relu(detail_channels, _DETAIL, kernel_size=1)
        self.fuse = nn.Sequential(
            conv_bn_relu(width + _DETAIL, width, kernel_size=1), conv_bn_relu(width, width, kernel_size=1)
        )
        self.classify = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, stage: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """First stage and context features -> logits (N, K, h, w) and features (N, width, h, w)."""
        features = self.fuse(torch.cat([_resize(self.reduce(context), stage), self.detail(stage)], dim=1))
        return self.classify(features), features


class EdgeBranch(nn.Module):
    """Edges between parts, seen in three stages by one shared classifier, then weighed against each other.

    Args:
        in_channels: of the three stages.
        width: of each stage's edge features.
    """

    def __init__(self, in_channels: Sequence[int], *, width: int):
        super().__init__()
        self.reduce = nn.ModuleList(conv_bn_relu(channels, width, kernel_size=1) for channels in in_channels)
        self.classify = nn.Conv2d(width, 2, kernel_size=3, padding=1)
        self.fuse = nn.Conv2d(2 * len(in_channels), 2, kernel_size=1)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Three stages -> logits (N, 2, h, w) and features (N, 3 * width, h, w) at the first one's size."""
        features = [reduce(stage) for reduce, stage in zip(self.reduce, stages, strict=True)]
        logits = [_resize(self.classify(one), stages[0]) for one in features]
        return self.fuse(torch.cat(logits, dim=1)), torch.cat([_resize(one, stages[0]) for one in features], dim=1)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)
