"""The head of PSPNet and DeepLabv3 as published, whose pyramid reads the backbone's features directly."""

from collections.abc import Callable

from torch import Tensor, nn

from .classifier import MainHead


class PyramidHead(MainHead):
    """A pyramid of branches on the backbone's features, and a classifier.

    Zhao et al., CVPR 2017, arXiv:1612.01105, section 3.2; Chen et al., 2017, arXiv:1706.05587, section 3.3. In the
    networks of the zoo the same pyramids stand in a :class:`models.heads.context.ContextHead`; published weights have
    them here.

    Args:
        in_channels: width of the backbone's last features.
        num_classes: K.
        context: called with ``in_channels``; returns a module (N, in_channels, h, w) -> (N, channels, h, w).
        channels: width of that module's output.
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
        self.add_classifier(channels, num_classes, dropout)

    def forward(self, features: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w) -> logits (N, K, h, w) and the context features (N, channels, h, w).

        Each frame of a clip is processed by itself.
        """
        context = self.context(features)
        return self.scores(context), context
