"""What the heads have in common: the classifier at the end, and what a main head gives."""

from torch import Tensor, nn


class ClassifierHead(nn.Module):
    """The base of all heads, which end in dropout and a 1x1 convolution to K class scores.

    A subclass calls :meth:`add_classifier` at the end of its constructor: optimiser states in checkpoints follow the
    order of the parameters, and the classifier is last.
    """

    dropout: nn.Dropout2d
    classify: nn.Conv2d

    def add_classifier(self, channels: int, num_classes: int, dropout: float) -> None:
        """Add the layers that map (N, channels, h, w) to (N, K, h, w).

        Args:
            channels: width of the features to classify.
            num_classes: K.
            dropout: share of channels dropped in training.
        """
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)

    def scores(self, features: Tensor) -> Tensor:
        """(N, channels, h, w) -> logits (N, K, h, w)."""
        return self.classify(self.dropout(features))


class MainHead(ClassifierHead):
    """The base of the heads that a :class:`models.segmentor.Segmentor` predicts with.

    Attributes:
        context_channels: width of the context features that :meth:`forward` returns.
    """

    context_channels: int

    def forward(self, features: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w) -> logits (N, K, h, w) and context features (N, context_channels, h, w).

        With ``frames`` T, N counts the frames of clips, one clip after the other.
        """
        raise NotImplementedError
