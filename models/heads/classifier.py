"""Base classes of the heads: one adds the final classifier, the other defines the interface of a main head."""

from torch import Tensor, nn


class ClassifierHead(nn.Module):
    """Base class of all heads: features are classified by dropout and a 1x1 convolution to K logits.

    Subclasses call :meth:`add_classifier` at the end of their constructor, so that the classifier's parameters come
    last: optimiser states in checkpoints depend on the parameter order.
    """

    dropout: nn.Dropout2d
    classify: nn.Conv2d

    def add_classifier(self, channels: int, num_classes: int, dropout: float) -> None:
        """Add the layers that map (N, channels, h, w) to (N, K, h, w).

        Args:
            channels: width of the features to classify.
            num_classes: number of classes K.
            dropout: fraction of channels dropped in training.
        """
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)

    def scores(self, features: Tensor) -> Tensor:
        """Classify the features: (N, channels, h, w) -> logits (N, K, h, w)."""
        return self.classify(self.dropout(features))


class MainHead(ClassifierHead):
    """Base class of the main heads of a :class:`~ccnet.models.segmentor.Segmentor`.

    Attributes:
        context_channels: width of the context features that :meth:`forward` returns.
    """

    context_channels: int

    def forward(self, features: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """Map (N, in_channels, h, w) to logits (N, K, h, w) and context features (N, context_channels, h, w).

        For clips of ``frames`` frames each, the batch axis holds all frames, clip by clip.
        """
        raise NotImplementedError
