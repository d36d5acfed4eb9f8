"""The semantic segmentation network: Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, section 3.1 and Fig. 2."""

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn

from .backbone import TimmBackbone
from .heads.classifier import MainHead
from .network import SegmentationNetwork, embedding


class Segmentor(SegmentationNetwork):
    """Semantic segmentation of RGB images in [0, 1], or of clips of them.

    Args:
        backbone: normalised images -> list of feature maps.
        head: called with the ``in_channels`` of the last feature map; returns a module that gives (logits, context).
        aux_head: called with the ``in_channels`` of the first feature map; returns a module that gives logits. None for
            no deep supervision.
        embedding_channels: width of the 1x1 embedding of the head's context that the category consistent loss reads
            (16 in the paper, section 3.4); None for none.
        align_corners: of the bilinear upsampling of the logits; the authors use True.
    """

    def __init__(
        self,
        backbone: TimmBackbone,
        head: Callable[..., MainHead],
        aux_head: Callable[..., nn.Module] | None = None,
        *,
        embedding_channels: int | None = None,
        align_corners: bool = True,
    ):
        super().__init__(backbone, align_corners=align_corners)
        self.head = head(in_channels=backbone.channels[-1])
        self.aux_head = aux_head(in_channels=backbone.channels[0]) if aux_head else None
        self.embed = embedding(self.head.context_channels, embedding_channels)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"out": logits (N, K, H, W)}; in training also "aux" and "embedding", if built.

        "aux" has the shape of "out"; "embedding" is (N, embedding_channels, h, w), at the features' size. Clips
        (N, 3, T, H, W) give outputs with T in the same place; their frames meet in the context module only.

        Raises:
            ValueError: another shape, or an image smaller than the output stride.
        """
        self.check(image, clips=True)
        size = image.shape[-2:]
        frames = image.shape[2] if image.ndim == 5 else None
        if frames:
            image = rearrange(image, "n c t h w -> (n t) c h w")
        features = self.features(image)
        logits, context = self.head(features[-1], frames)
        output = {"out": self.upsample(logits, size)}
        if self.training and self.aux_head is not None:
            output["aux"] = self.upsample(self.aux_head(features[0]), size)
        if self.training and self.embed is not None:
            output["embedding"] = self.embed(context)
        if frames:
            output = {key: rearrange(x, "(n t) c h w -> n c t h w", t=frames) for key, x in output.items()}
        return output
