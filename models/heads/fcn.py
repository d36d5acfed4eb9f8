"""The FCN head that supervises an inner stage: deep supervision as in PSPNet and the CCNet authors' code."""

from torch import Tensor, nn

from ..layers import conv_bn_relu


class FCNHead(nn.Module):
    """3x3 convolution and classifier.

    Args:
        in_channels: of the features it reads.
        num_classes: K.
        channels: width of the hidden layer; 512 in the authors' code.
        dropout: share of channels dropped before the classifier.
        negative_slope: of the activation; the authors' published weights need 0.01, 0 is the ReLU.
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
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> logits (N, K, h, w)."""
        return self.classify(self.dropout(self.hidden(features)))
