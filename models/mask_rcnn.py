"""Mask R-CNN with a context module in its backbone.

He et al., Mask R-CNN, ICCV 2017, arXiv:1703.06870. Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, section 4.6,
insert one module "right before the last residual block of res4".
"""

# torchvision is untyped.

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from .backbone import TimmBackbone

STAGES = ("layer1", "layer2", "layer3", "layer4")  # timm's names of res2 to res5
_BOX_SIZE = 7  # side of the feature crop that torchvision pools for each box


class MaskRCNN(detection.MaskRCNN):
    """torchvision's Mask R-CNN for instance segmentation, with torchvision's detection API.

    In training mode, it maps images and targets to a dict of five losses. In eval mode, it maps each image to a dict
    with "boxes" (n, 4), "labels" (n,), "scores" (n,) and "masks" (n, 1, H, W), sorted by score. Images are a list of
    RGB tensors (3, H, W) in [0, 1] of any size. Targets are a list of dicts with "boxes" (n, 4) as x1, y1, x2, y2 in
    pixels, "labels" (n,) from 1 to K (0 is the background) and "masks" (n, H, W) in {0, 1}.

    Args:
        backbone: a timm ResNet that returns its four stages.
        num_classes: number of object classes K, without the background.
        context: called with the number of channels C; returns a module that preserves the shape (N, C, h, w) and is
            inserted as described in :class:`PyramidBackbone`. None for plain Mask R-CNN.
        channels: width of the feature pyramid and of the mask head, 256 in torchvision; the box head is four times as
            wide.
        frozen: freeze the backbone's batch norm and all layers up to res2, as in the Mask R-CNN paper. Only use it with
            pretrained weights: random weights would never be trained.
        min_size, max_size: images are resized such that the short side has ``min_size`` pixels, or fewer if the long
            side would otherwise exceed ``max_size`` pixels.

    Raises:
        ValueError: the backbone is not a ResNet with four stages, or its image statistics come from its weights.
    """

    def __init__(
        self,
        backbone: TimmBackbone,
        num_classes: int,
        *,
        context: Callable[[int], nn.Module] | None = None,
        channels: int = 256,
        frozen: bool = True,
        min_size: int = 800,
        max_size: int = 1333,
    ):
        if backbone.from_weights:
            mean, std = (",".join(f"{value:.6g}" for value in values) for values in (backbone.mean, backbone.std))
            raise ValueError(
                "backbone.weights come from a run with image statistics of its own, which a checkpoint of Mask R-CNN "
                f"only records if they are set: set backbone.mean=[{mean}] backbone.std=[{std}]"
            )
        outputs = num_classes + 1
        super().__init__(
            PyramidBackbone(backbone, context=context, channels=channels, frozen=frozen),
            box_head=TwoMLPHead(channels * _BOX_SIZE**2, 4 * channels),
            box_predictor=FastRCNNPredictor(4 * channels, outputs),
            mask_head=MaskRCNNHeads(channels, [channels] * 4, dilation=1),
            mask_predictor=MaskRCNNPredictor(channels, channels, outputs),
            min_size=min_size,
            max_size=max_size,
            image_mean=list(backbone.mean),
            image_std=list(backbone.std),
        )


class PyramidBackbone(nn.Module):
    """A ResNet with a feature pyramid of five levels, with strides 4 to 64.

    The context module is inserted as ``body.layer3.context``, before the last block of the third stage. The other keys
    of the state dict stay as in timm. If the third stage has a single block (resnet10t), the module is applied to the
    output of the second stage.

    Args:
        backbone, context, channels, frozen: see :class:`MaskRCNN`.
    """

    def __init__(
        self,
        backbone: TimmBackbone,
        *,
        context: Callable[[int], nn.Module] | None = None,
        channels: int = 256,
        frozen: bool = True,
    ):
        super().__init__()
        self.out_channels = channels  # required by torchvision's Mask R-CNN
        self.body = backbone.net
        modules = dict(self.body.named_children())
        if not all(stage in modules for stage in STAGES) or len(backbone.channels) != len(STAGES):
            raise ValueError(
                f"Mask R-CNN needs the stages {', '.join(STAGES)} of a ResNet, but {type(self.body).__name__} returns "
                f"{', '.join(modules)}: choose a timm ResNet, such as resnet50 or resnet101"
            )
        if frozen:
            freeze_batch_norm_2d(self.body)
            for name, parameter in self.body.named_parameters():
                parameter.requires_grad_(name.startswith(STAGES[1:]))
        if context:  # model/context=none composes to an empty dict
            self.body["layer3"] = _with_context(self.body["layer3"], context)
        self.fpn = FeaturePyramidNetwork(backbone.channels, channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map normalised images (N, 3, H, W) to the levels "0" to "3" and "pool", each (N, channels, h_i, w_i)."""
        levels = self.body(images)
        return self.fpn(OrderedDict((str(index), level) for index, level in enumerate(levels)))


def _with_context(stage: nn.Sequential, context: Callable[[int], nn.Module]) -> nn.Sequential:
    """Return ``stage`` with a context module before its last block; the blocks keep their names."""
    blocks: list[tuple[str, Any]] = list(stage.named_children())
    *before, (name, last) = blocks
    return nn.Sequential(OrderedDict([*before, ("context", context(last.conv1.in_channels)), (name, last)]))
