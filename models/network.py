"""Base class of the segmentation networks: normalisation, backbone, input check and upsampling."""

import torch
from torch import Tensor, nn

from .backbone import TimmBackbone
from .layers import resize


class SegmentationNetwork(nn.Module):
    """Base class of the networks for semantic segmentation and human parsing, which add the heads.

    Callers pass images in [0, 1], RGB or with the backbone's number of channels C. The backbone's image statistics,
    which normalise them, are buffers and therefore saved with the weights.

    Args:
        backbone: maps normalised images to a list of feature maps.
        align_corners: whether bilinear upsampling of the logits aligns corners; True in the authors' code.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: TimmBackbone, *, align_corners: bool):
        super().__init__()
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(1, -1, 1, 1))
        self.backbone = backbone
        self.align_corners = align_corners

    def check(self, image: Tensor, *, clips: bool) -> None:
        """Raise ValueError unless ``image`` is (N, C, H, W), or (N, C, T, H, W) with ``clips``, and large enough.

        Integers are rejected because they are usually in [0, 255].
        """
        stride, number = self.backbone.output_stride, self.backbone.in_channels
        fits = image.ndim in ((4, 5) if clips else (4,)) and image.shape[1] == number and 0 not in image.shape[2:]
        if not fits or min(image.shape[-2:]) < stride:
            expected = f"(N, {number}, H, W)" + (f" or clips (N, {number}, T, H, W)" if clips else "")
            kind = "RGB images" if number == 3 else "images"
            raise ValueError(
                f"expected {kind} {expected} of at least {stride}x{stride} pixels (the output stride), got "
                f"{tuple(image.shape)}"
            )
        if not image.is_floating_point():
            raise ValueError(f"expected floating-point images in [0, 1], got {image.dtype}: convert them first")

    def features(self, image: Tensor) -> list[Tensor]:
        """Map images (N, C, H, W) in [0, 1] to the backbone's feature maps (N, channels[i], h_i, w_i).

        Images of any floating-point dtype are converted to that of the backbone's weights.
        """
        weight = next(self.backbone.parameters(), self.mean)  # FSDP can convert weights, but not buffers, to bfloat16
        return self.backbone(((image - self.mean) / self.std).to(weight.dtype))

    def upsample(self, logits: Tensor, size: torch.Size) -> Tensor:
        """Upsample logits bilinearly: (N, K, h, w) -> (N, K, *size)."""
        return resize(logits, size, align_corners=self.align_corners)


def embedding(context_channels: int, channels: int | None) -> nn.Conv2d | None:
    """Return a 1x1 convolution that embeds context features for the category consistent loss; None to disable.

    Args:
        context_channels: width of the context features.
        channels: width of the embedding, 16 in the CCNet paper (section 3.4); None or 0 to disable.
    """
    return nn.Conv2d(context_channels, channels, kernel_size=1) if channels else None
