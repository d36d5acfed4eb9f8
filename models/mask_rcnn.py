"""Mask R-CNN with context in its backbone: He et al., ICCV 2017, arXiv:1703.06870; Huang et al., CCNet, TPAMI 2020,
arXiv:1811.11721, section 4.6, which puts one module "right before the last residual block of res4".
"""

from collections import OrderedDict
from collections.abc import Callable

from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from .backbone import TimmBackbone

STAGES = ("layer1", "layer2", "layer3", "layer4")  # timm's names of res2 to res5
_BOX_SIZE = 7  # of the features that torchvision cuts out for a box, squared


class MaskRCNN(detection.MaskRCNN):
    """Objects, their boxes and their masks, by torchvision's Mask R-CNN; its detection API.

    In training, images and targets give a dict of five losses; in eval mode images give a dict each of "boxes",
    "labels", "scores" and "masks", sorted by score. Images are a list of RGB (3, H, W) in [0, 1] of any sizes, targets
    a list of dicts of "boxes" (n, 4) as x1, y1, x2, y2 in pixels, "labels" (n,) from 1 to K (0 is the background) and
    "masks" (n, H, W) in {0, 1}.

    Args:
        backbone: a ResNet of timm with its four stages.
        num_classes: K kinds of objects, without the background.
        context: called with a number of channels; gives a module (N, C, h, w) -> (N, C, h, w), see
            :class:`PyramidBackbone`. None for the plain Mask R-CNN.
        channels: width of the pyramid and of the mask head; the box head has four times as much. 256 gives
            torchvision's Mask R-CNN.
        frozen: freeze the batch norm of the backbone and everything up to res2, as Mask R-CNN's settings have it;
            for pretrained backbones only, random ones learn nothing so.
        min_size, max_size: the short side that images are resized to, pixels, unless the long one exceeds the other.
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
    """A ResNet's stages as a feature pyramid of five levels, strides 4 to 64.

    The context module stands before the last block of the third stage under a name of its own,
    ``body.layer3.context``, so that every other entry of the state dict is called as it is without it, and as in
    timm. Where a stage has one block only (resnet10t), it reads the stage before.

    Args:
        backbone, context, channels, frozen: of :class:`MaskRCNN`.
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
        self.out_channels = channels  # torchvision's Mask R-CNN asks for it
        self.body = backbone.net
        modules = dict(self.body.named_children())
        if not all(stage in modules for stage in STAGES) or len(backbone.channels) != len(STAGES):
            raise ValueError(
                f"Mask R-CNN reads the stages {', '.join(STAGES)} of a ResNet, which {type(self.body).__name__} gave "
                f"as {', '.join(modules)}: choose a ResNet of timm, such as resnet50 or resnet101"
            )
        if frozen:
            freeze_batch_norm_2d(self.body)
            for name, parameter in self.body.named_parameters():
                parameter.requires_grad_(name.startswith(STAGES[1:]))
        if context:  # an empty configuration is none
            self.body["layer3"] = _with_context(self.body["layer3"], context)
        self.fpn = FeaturePyramidNetwork(backbone.channels, channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), normalised -> "0", "1", "2", "3" and "pool", (N, channels, h, w) each."""
        levels = self.body(images)
        return self.fpn(OrderedDict((str(index), level) for index, level in enumerate(levels)))


def _with_context(stage: nn.Sequential, context: Callable[[int], nn.Module]) -> nn.Sequential:
    """The stage with a context module before its last block; the blocks keep their names."""
    *before, (name, last) = stage.named_children()
    return nn.Sequential(OrderedDict([*before, ("context", context(last.conv1.in_channels)), (name, last)]))
