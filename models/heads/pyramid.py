"""The head of the original PSPNet and DeepLabv3, which apply the pyramid directly to the backbone's features."""

from collections.abc import Callable

from torch import Tensor, nn

from .classifier import MainHead


class PyramidHead(MainHead):
    """A pyramid module on the backbone's features, followed by a classifier.

    Zhao et al., CVPR 2017, arXiv:1612.01105, section 3.2; Chen et al., 2017, arXiv:1706.05587, section 3.3. In the
    model zoo, the same pyramid modules are part of a :class:`~ccnet.models.heads.context.ContextHead`; published
    weights need this head.

    Args:
        in_channels: width of the backbone's last features.
        num_classes: number of classes K.
        context: called with ``in_channels``; returns a module that maps (N, in_channels, h, w) to (N, channels, h, w).
        channels: width of that module's output.
        dropout: fraction of channels dropped before the classifier.
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
        """Map (N, in_channels, h, w) to logits (N, K, h, w) and context features (N, channels, h, w).

        The frames of a clip are processed independently.
        """
        context = self.context(features)
        return self.scores(context), context
