"""Global convolution: Peng et al., Large Kernel Matters, CVPR 2017, arXiv:1703.02719."""

from torch import Tensor, nn


class GlobalConvolution(nn.Module):
    """A k x k convolution built as the sum of two separable ones: k x 1 then 1 x k, and 1 x k then k x 1.

    Args:
        channels: number of input and output channels C.
        kernel_size: k, odd; 15 is the best in Table 1 of the paper.
    """

    def __init__(self, channels: int, *, kernel_size: int = 15):
        super().__init__()
        tall, wide = (kernel_size, 1), (1, kernel_size)
        self.left, self.right = (
            nn.Sequential(*(_convolution(channels, size) for size in order)) for order in ((tall, wide), (wide, tall))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module; the shape (N, C, H, W) is unchanged."""
        return self.left(x) + self.right(x)


def _convolution(channels: int, size: tuple[int, int]) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, size, padding=(size[0] // 2, size[1] // 2))
