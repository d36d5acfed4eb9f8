"""The whole network: normalise, backbone, heads, and one upsampling at the end."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import interpolate


class Segmentor(nn.Module):
    """Semantic segmentation of RGB images in [0, 1], or of clips of them.

    Args:
        backbone: image -> list of feature maps, with ``channels``, ``output_stride``, ``mean`` and ``std``.
        head: called with ``in_channels`` of the last feature map; gives (logits, context).
        aux_head: called likewise for the first feature map; gives logits. None for no deep supervision.
        embedding_channels: width of the 1x1 embedding of the head's context that the category consistent
            loss reads (16 in the paper, section 3.4); None for none.
        align_corners: of the bilinear upsampling of the logits; the authors use True.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Callable[..., nn.Module],
        aux_head: Callable[..., nn.Module] | None = None,
        *,
        embedding_channels: int | None = None,
        align_corners: bool = True,
    ):
        super().__init__()
        # Mean and standard deviation travel with the weights: a caller cannot get the preprocessing wrong.
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1))
        self.backbone = backbone
        self.head = head(in_channels=backbone.channels[-1])
        self.aux_head = aux_head(in_channels=backbone.channels[0]) if aux_head else None
        self.embed = (
            nn.Conv2d(self.head.context_channels, embedding_channels, kernel_size=1) if embedding_channels else None
        )
        self.align_corners = align_corners

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"out": logits (N, K, H, W)}; in training also "aux" and "embedding", if built.

        "aux" is like "out"; "embedding" is (N, embedding_channels, h, w), at the features' size. Clips
        (N, 3, T, H, W) give a T in the same place everywhere; their frames meet in the context module alone.
        """
        size = image.shape[-2:]
        stride = self.backbone.output_stride
        if image.ndim not in (4, 5) or image.shape[1] != 3 or min(size) < stride:
            raise ValueError(
                f"expected RGB images (N, 3, H, W) or clips (N, 3, T, H, W) of at least {stride}x{stride} pixels, the "
                f"output stride, got {tuple(image.shape)}"
            )
        frames = image.shape[2] if image.ndim == 5 else None
        if frames:
            image = rearrange(image, "n c t h w -> (n t) c h w")
        features = self.backbone((image - self.mean) / self.std)
        logits, context = self.head(features[-1], frames)
        output = {"out": self._upsample(logits, size)}
        if self.training and self.aux_head is not None:
            output["aux"] = self._upsample(self.aux_head(features[0]), size)
        if self.training and self.embed is not None:
            output["embedding"] = self.embed(context)
        if frames:
            output = {key: rearrange(x, "(n t) c h w -> n c t h w", t=frames) for key, x in output.items()}
        return output

    def _upsample(self, logits: Tensor, size: torch.Size) -> Tensor:
        return interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)
