"""The head of CE2P: Ruan et al., Devil in the Details: Towards Accurate Single and Multiple Human Parsing, AAAI 2019,
arXiv:1809.05996, section 3 and Fig. 2.

It follows the authors' code layer by layer, with batch norm and ReLU instead of in-place activated batch norm. The
CCNet paper (section 4.5) replaces CE2P's pyramid with recurrent criss-cross attention; ``context`` selects one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..context.pyramid import PyramidPooling
from ..layers import conv_bn_relu, resize
from .classifier import ClassifierHead

_DETAIL_CHANNELS = 48  # width to which the decoder reduces the features of the first stage


class ParsingOutput(NamedTuple):
    """Logits at the resolution of the first stage, and context features at that of the last stage.

    Attributes:
        fused: logits (N, K, h, w) from the features of the decoder and the edge branch; the final prediction.
        decoder: logits (N, K, h, w) from the features of the decoder alone.
        edge: logits (N, 2, h, w) of "no edge" and "edge".
        context: context features (N, context_channels, h', w').
    """

    fused: Tensor
    decoder: Tensor
    edge: Tensor
    context: Tensor


class Context(Protocol):
    """Interface of the context module of a :class:`CE2PHead`, such as :class:`PyramidFeatures`.

    Attributes:
        context_channels: width of the context features.
    """

    context_channels: int

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, channels, h, w) and context features (N, context_channels, h, w).

        Args:
            features: output of the last stage, (N, in_channels, h, w).
        """
        ...


class CE2PHead(ClassifierHead):
    """The head of CE2P: a context module, a high-resolution decoder and an edge branch, whose features are fused.

    Args:
        in_channels: widths of the four backbone stages, which have strides 4, 8, 16 and 16.
        num_classes: number of classes K.
        context: called with the ``in_channels`` of the last stage and with ``channels``; returns a :class:`Context`,
            such as :class:`PyramidFeatures` or :class:`~ccnet.models.heads.context.ContextFeatures`.
        channels: width of the context module's output, 512 in the paper; decoder and edge branch are half as wide.
        dropout: fraction of channels dropped before the last classifier.

    Raises:
        ValueError: the backbone does not return four stages.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        context: Callable[..., Context],
        channels: int = 512,
        dropout: float = 0.1,
    ):
        super().__init__()
        if len(in_channels) != 4:
            raise ValueError(
                f"CE2P needs four stages of the backbone, got {len(in_channels)}: set out_indices=[-4, -3, -2, -1]"
            )
        width = channels // 2
        self.context = context(in_channels=in_channels[-1], channels=channels)
        self.context_channels = self.context.context_channels
        self.decoder = Decoder(in_channels[0], channels, num_classes, width=width)
        self.edge = EdgeBranch(in_channels[:3], width=width)
        self.fuse = conv_bn_relu(4 * width, width, kernel_size=1)
        self.add_classifier(width, num_classes, dropout)

    def forward(self, stages: Sequence[Tensor]) -> ParsingOutput:
        """Map four feature maps (N, in_channels[i], h_i, w_i) to a :class:`ParsingOutput`."""
        features, context = self.context(stages[-1])
        decoder_logits, decoded = self.decoder(stages[0], features)
        edge_logits, edges = self.edge(stages[:3])
        fused = self.fuse(torch.cat([decoded, edges], dim=1))
        return ParsingOutput(self.scores(fused), decoder_logits, edge_logits, context)


class PyramidFeatures(nn.Module):
    """CE2P's original context module: pyramid pooling of the backbone's features, ``channels`` per branch.

    Args:
        in_channels: width of the backbone's last features.
        channels: width of the output.
        bins: number of bins per side of each grid.
    """

    pools = True  # see PyramidPooling

    def __init__(self, in_channels: int, *, channels: int = 512, bins: Sequence[int] = (1, 2, 3, 6)):
        super().__init__()
        self.context_channels = channels
        self.pyramid = PyramidPooling(in_channels, bins=bins, out_channels=channels, width=channels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Pool (N, in_channels, h, w) to (N, channels, h, w), returned both as features and as context features."""
        pooled = self.pyramid(features)
        return pooled, pooled


class Decoder(nn.Module):
    """Upsamples the context to the resolution of the first stage and fuses it with the features of that stage.

    Args:
        detail_channels: width of the first stage.
        context_channels: width of the context.
        num_classes: number of classes K.
        width: width of the output.
    """

    def __init__(self, detail_channels: int, context_channels: int, num_classes: int, *, width: int):
        super().__init__()
        self.reduce = conv_bn_relu(context_channels, width, kernel_size=1)
        self.detail = conv_bn_relu(detail_channels, _DETAIL_CHANNELS, kernel_size=1)
        self.fuse = nn.Sequential(
            conv_bn_relu(width + _DETAIL_CHANNELS, width, kernel_size=1), conv_bn_relu(width, width, kernel_size=1)
        )
        self.classify = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, stage: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, K, h, w) and features (N, width, h, w).

        Args:
            stage: (N, detail_channels, h, w), features of the first stage.
            context: (N, context_channels, h', w').
        """
        upsampled = resize(self.reduce(context), stage.shape[-2:])
        features = self.fuse(torch.cat([upsampled, self.detail(stage)], dim=1))
        return self.classify(features), features


class EdgeBranch(nn.Module):
    """Predicts edges with a classifier shared by three stages and a 1x1 convolution that combines their logits.

    Args:
        in_channels: widths of the three stages.
        width: width of each stage's edge features.
    """

    def __init__(self, in_channels: Sequence[int], *, width: int):
        super().__init__()
        self.reduce = nn.ModuleList(conv_bn_relu(channels, width, kernel_size=1) for channels in in_channels)
        self.classify = nn.Conv2d(width, 2, kernel_size=3, padding=1)
        self.fuse = nn.Conv2d(2 * len(in_channels), 2, kernel_size=1)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (N, 2, h_0, w_0) and features (N, 3 * width, h_0, w_0).

        Args:
            stages: three feature maps (N, in_channels[i], h_i, w_i).
        """
        size = stages[0].shape[-2:]
        features = [reduce(stage) for reduce, stage in zip(self.reduce, stages, strict=True)]
        logits = torch.cat([resize(self.classify(feature), size) for feature in features], dim=1)
        return self.fuse(logits), torch.cat([resize(feature, size) for feature in features], dim=1)
