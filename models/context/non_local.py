"""Non-local attention, in the variant of the CCNet paper and as originally published.

Wang et al., Non-local Neural Networks, CVPR 2018, arXiv:1711.07971, section 3.
"""

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..layers import residual_weight


class NonLocal(nn.Module):
    """Non-local attention, in which every pixel attends to every pixel.

        y = gamma * softmax(query(x)^T key(x)) value(x) + x

    The widths are those of Tables 2 and 5 of the CCNet paper (108.2 GFLOPs on 97x97 features of 512 channels): C / 8
    for query and key, C for the value, and no output convolution. The value is split into slabs of the query's width,
    which torch's fused attention kernels support; they never materialise the (H W, H W) attention matrix.

    Args:
        channels: number of input and output channels C, a multiple of 8.
        gamma: "learned" or "fixed"; see :func:`~ccnet.models.layers.residual_weight`.

    Raises:
        ValueError: ``channels`` is not a multiple of 8.
    """

    def __init__(self, channels: int, *, gamma: str = "learned"):
        super().__init__()
        if channels % 8:
            raise ValueError(f"channels is {channels}: the non-local block needs a multiple of 8")
        self.query_conv = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.key_conv = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.value_conv = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = residual_weight(gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module; the shape (N, C, H, W) is unchanged."""
        query = rearrange(self.query_conv(x), "n d h w -> n 1 (h w) d")
        key = rearrange(self.key_conv(x), "n d h w -> n 1 (h w) d")
        value = rearrange(self.value_conv(x), "n (slab d) h w -> n slab (h w) d", d=query.shape[-1])
        slabs = value.shape[1]
        context = scaled_dot_product_attention(
            query.expand(-1, slabs, -1, -1), key.expand(-1, slabs, -1, -1), value, scale=1.0
        )
        context = rearrange(context, "n slab (h w) d -> n (slab d) h w", h=x.shape[-2])
        if self.gamma is not None:
            context = self.gamma * context
        return context + x


class BottleneckNonLocal(nn.Module):
    """The original block of Wang et al. (embedded Gaussian), with C / 2 inner channels and a scaled dot product.

        y = BN(project(softmax(query(x)^T key(x) / sqrt(D)) value(x))) + x,  D = C / 2

    The weight of the batch norm is initialised to 0, so the block starts as the identity.

    Args:
        channels: number of input and output channels C.
    """

    def __init__(self, channels: int):
        super().__init__()
        width = max(channels // 2, 1)
        self.query_conv = nn.Conv2d(channels, width, kernel_size=1)
        self.key_conv = nn.Conv2d(channels, width, kernel_size=1)
        self.value_conv = nn.Conv2d(channels, width, kernel_size=1)
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.project = nn.Sequential(nn.Conv2d(width, channels, kernel_size=1, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module; the shape (N, C, H, W) is unchanged."""
        query, key, value = (
            rearrange(conv(x), "n d h w -> n 1 (h w) d") for conv in (self.query_conv, self.key_conv, self.value_conv)
        )
        context = scaled_dot_product_attention(query, key, value)
        return self.project(rearrange(context, "n 1 (h w) d -> n d h w", h=x.shape[-2])) + x
