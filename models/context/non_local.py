"""Non-local attention, as the paper measures it and as its authors built it: Wang et al., 2018, arXiv:1711.07971."""

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..layers import residual_weight


class NonLocal(nn.Module):
    """Every pixel attends to every pixel.

        y = gamma * softmax(query(x)^T key(x)) value(x) + x

    With the widths of the paper's Tables 2 and 5 (108.2 GFLOPs on 97x97 features of 512 channels): C / 8 for query
    and key, C for value, no output convolution. The attention of all pixels to all pixels is never in memory: the
    value goes through torch's fused attention in slabs as wide as the query, which that takes.

    Args:
        channels: C of input and output, a multiple of 8.
        gamma: "learned" or "fixed", see :func:`models.layers.residual_weight`.
    """

    def __init__(self, channels: int, *, gamma: str = "learned"):
        super().__init__()
        if channels % 8:
            raise ValueError(f"channels is {channels}: the non-local block takes a multiple of 8")
        self.query_conv = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.key_conv = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.value_conv = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = residual_weight(gamma)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
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
    """The block as Wang et al. build it (embedded Gaussian), with half the channels inside and softmax scaled.

        y = BN(project(softmax(query(x)^T key(x) / sqrt(D)) value(x))) + x,  D = C / 2

    The batch norm starts at 0, so that the block starts as the identity.

    Args:
        channels: C of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        width = max(channels // 2, 1)
        self.query_conv = nn.Conv2d(channels, width, kernel_size=1)
        self.key_conv = nn.Conv2d(channels, width, kernel_size=1)
        self.value_conv = nn.Conv2d(channels, width, kernel_size=1)
        self.project = nn.Sequential(nn.Conv2d(width, channels, kernel_size=1, bias=False), nn.BatchNorm2d(channels))
        nn.init.zeros_(self.project[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        query, key, value = (
            rearrange(conv(x), "n d h w -> n 1 (h w) d") for conv in (self.query_conv, self.key_conv, self.value_conv)
        )
        context = scaled_dot_product_attention(query, key, value)
        return self.project(rearrange(context, "n 1 (h w) d -> n d h w", h=x.shape[-2])) + x
