"""The CE2P human parsing network, which also predicts the edges between parts: Ruan et al., AAAI 2019."""

from collections.abc import Callable

from torch import Tensor

from .backbone import TimmBackbone
from .heads.ce2p import CE2PHead, ParsingOutput
from .network import SegmentationNetwork, embedding


class Parser(SegmentationNetwork):
    """Human parsing network for RGB images in [0, 1]; its head uses four backbone stages and also predicts edges.

    Args:
        backbone: maps normalised images to a list of four feature maps, one per stage.
        head: called with the ``in_channels`` of all stages; returns a module whose output is a
            :class:`~ccnet.models.heads.ce2p.ParsingOutput`.
        embedding_channels: width of the embedding of the context features for the category consistent loss (16 in
            the CCNet paper, section 3.4); None to disable.
        align_corners: whether bilinear upsampling of the logits aligns corners; True in the authors' code.
    """

    def __init__(
        self,
        backbone: TimmBackbone,
        head: Callable[..., CE2PHead],
        *,
        embedding_channels: int | None = None,
        align_corners: bool = True,
    ):
        super().__init__(backbone, align_corners=align_corners)
        self.head = head(in_channels=backbone.channels)
        self.embed = embedding(self.head.context_channels, embedding_channels)

    @property
    def training_outputs(self) -> list[str]:
        """The names of the outputs in training mode."""
        return ["out", "aux", "edge", *(["embedding"] if self.embed is not None else [])]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Parse images: (N, 3, H, W) -> {"out": logits (N, K, H, W)}; in training also "aux", "edge" and "embedding".

        "aux" contains the decoder's logits, before its features are fused with the edge features, shaped like "out".
        "edge" contains the logits (N, 2, H, W) of "no edge" and "edge". "embedding" (N, embedding_channels, h, w) is
        only returned if the network has an embedding.

        Raises:
            ValueError: the shape or dtype is wrong, or the image is smaller than the output stride.
        """
        self.check(image, clips=False)
        size = image.shape[-2:]
        parsing: ParsingOutput = self.head(self.features(image))
        output = {"out": self.upsample(parsing.fused, size)}
        if self.training:
            output["aux"] = self.upsample(parsing.decoder, size)
            output["edge"] = self.upsample(parsing.edge, size)
            if self.embed is not None:
                output["embedding"] = self.embed(parsing.context)
        return output
