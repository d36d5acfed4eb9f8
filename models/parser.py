"""The whole network for human parsing: parts of a person, and the edges between them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


class Parser(nn.Module):
    """Segmentation of RGB images in [0, 1] with a head that reads several stages and also finds edges.

    Args:
        backbone: image -> list of feature maps, with ``channels``, ``output_stride``, ``mean`` and ``std``.
        head: called with ``in_channels`` of all of them; gives a :class:`models.heads.ce2p.ParsingOutput`.
        embedding_channels: width of the 1x1 embedding of the head's context that the category consistent
            loss reads (16 in the CCNet paper, section 3.4); None for none.
        align_corners: of the bilinear upsampling of the logits; the authors use True.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Callable[..., nn.Module],
        *,
        embedding_channels: int | None = None,
        align_corners: bool = True,
    ):
        super().__init__()
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1))
        self.backbone = backbone
        self.head = head(in_channels=backbone.channels)
        self.embed = (
            nn.Conv2d(self.head.context_channels, embedding_channels, kernel_size=1) if embedding_channels else None
        )
        self.align_corners = align_corners

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"out": logits (N, K, H, W)}; in training also "aux", "edge" and, if built, "embedding".

        "aux" is the parsing before the fusion with the edges, like "out"; "edge" is (N, 2, H, W), logits of no edge
        and edge; "embedding" is (N, embedding_channels, h, w), at the context's size.
        """
        size, stride = image.shape[-2:], self.backbone.output_stride
        if image.ndim != 4 or image.shape[1] != 3 or min(size) < stride:
            raise ValueError(
                f"expected RGB images (N, 3, H, W) of at least {stride}x{stride} pixels, the output stride, got "
                f"{tuple(image.shape)}"
            )
        found = self.head(self.backbone((image - self.mean) / self.std))
        output = {"out": self._upsample(found.fused, size)}
        if self.training:
            output |= {"aux": self._upsample(found.decoder, size), "edge": self._upsample(found.edge, size)}
            if self.embed is not None:
                output["embedding"] = self.embed(found.context)
        return output

    def _upsample(self, logits: Tensor, size: torch.Size) -> Tensor:
        return interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)
