"""The semantic segmentation network: Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, section 3.1 and Fig. 2."""

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn

from .backbone import TimmBackbone
from .heads.classifier import MainHead
from .network import SegmentationNetwork, embedding


class Segmentor(SegmentationNetwork):
    """Semantic segmentation network for RGB images or clips in [0, 1].

    Args:
        backbone: maps normalised images to a list of feature maps.
        head: called with the ``in_channels`` of the last feature map; returns a module that outputs (logits, context).
        aux_head: called with the ``in_channels`` of the first feature map; returns a module that outputs logits.
            None to disable deep supervision.
        embedding_channels: width of the embedding of the context features for the category consistent loss (16 in
            the paper, section 3.4); None to disable.
        align_corners: whether bilinear upsampling of the logits aligns corners; True in the authors' code.
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

    @property
    def training_outputs(self) -> list[str]:
        """The names of the outputs in training mode."""
        optional = {"aux": self.aux_head, "embedding": self.embed}
        return ["out", *(name for name, module in optional.items() if module is not None)]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Segment images: (N, 3, H, W) -> {"out": logits (N, K, H, W)}; in training also "aux" and "embedding".

        "aux" (shaped like "out") and "embedding" (N, embedding_channels, h, w) are only returned if the network has
        the respective module. For clips (N, 3, T, H, W), outputs also have T as their third axis, and frames interact
        only in the context module.

        Raises:
            ValueError: the shape or dtype is wrong, or the image is smaller than the output stride.
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
