"""The backbone of the CCNet authors' published networks."""

from typing import Any

from ..backbone import TimmBackbone

# Caffe's RGB means for pixels in [0, 255]; images are not divided by a standard deviation.
_MEAN = (122.67891434, 116.66876762, 104.00698793)


class CaffeResNet(TimmBackbone):
    """timm's deep-stem ResNet (64, 64 and 128 channels), modified to match the authors' network.

    Max pooling rounds sizes up, which adds a row or column if a side of the image has 4n or 4n - 1 pixels. The first
    blocks of stages three and four have the same dilation as the other blocks, 2 and 4. By default, the network sees
    colours in [0, 255], minus Caffe's means.

    Args:
        name: resnet50s or resnet101s.
        **options: other arguments of :class:`~ccnet.models.backbone.TimmBackbone`.
    """

    def __init__(self, name: str, **options: Any):
        super().__init__(name, **options)
        net: Any = self.net
        net.maxpool.ceil_mode = True
        for stage, dilation in ((net.layer3, 2), (net.layer4, 4)):
            first = stage[0].conv2
            first.dilation = first.padding = (dilation, dilation)
        if options.get("mean") is None:
            self.mean = tuple(channel / 255 for channel in _MEAN)
        if options.get("std") is None:
            self.std = (1 / 255,) * 3
