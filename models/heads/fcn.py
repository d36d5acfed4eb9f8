"""The auxiliary FCN head for supervising an intermediate stage, as in PSPNet and in the CCNet authors' code."""

from torch import Tensor

from ..layers import conv_bn_relu
from .classifier import ClassifierHead


class FCNHead(ClassifierHead):
    """A 3x3 convolution followed by a classifier.

    Args:
        in_channels: width of the features.
        num_classes: number of classes K.
        channels: width of the hidden layer; 512 in the authors' code.
        dropout: fraction of channels dropped before the classifier.
        negative_slope: negative slope of the activation; 0 for plain ReLU, 0.01 for the authors' published weights.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 512,
        dropout: float = 0.1,
        negative_slope: float = 0.0,
    ):
        super().__init__()
        self.hidden = conv_bn_relu(in_channels, channels, negative_slope=negative_slope)
        self.add_classifier(channels, num_classes, dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Classify the features: (N, in_channels, h, w) -> logits (N, K, h, w)."""
        return self.scores(self.hidden(features))
