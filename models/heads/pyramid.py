"""The head in which the context module itself reads the backbone's features, as PSPNet and DeepLabv3 have it."""

from collections.abc import Callable

from torch import Tensor, nn


class PyramidHead(nn.Module):
    """Context module and classifier.

    Args:
        in_channels: of the backbone's last features.
        num_classes: K.
        context: called with ``in_channels``; gives a module (N, in_channels, h, w) -> (N, channels, h, w).
        channels: of the context module's output.
        dropout: share of channels dropped before the classifier.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        context: Callable[[int], nn.Module],
        channels: int = 512,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.context_channels = channels
        self.context = context(in_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, features: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w) -> logits (N, K, h, w) and the context features; each of ``frames`` by itself."""
        context = self.context(features)
        return self.classify(self.dropout(context)), context
