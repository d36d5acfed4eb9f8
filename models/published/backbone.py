"""The backbone of the CCNet authors' published networks."""

from typing import Any

from ..backbone import TimmBackbone

# Caffe's RGB means for pixels in [0, 255]; images are not divided by a standard deviation.
_STATISTICS: dict[str, Any] = {
    "mean": tuple(mean / 255 for mean in (122.67891434, 116.66876762, 104.00698793)),
    "std": (1 / 255,) * 3,
}


class CaffeResNet(TimmBackbone):
    """timm's deep-stem ResNet (64, 64 and 128 channels), modified to match the authors' network.

    Max pooling rounds sizes up, which adds a row or column if a side of the image has 4n or 4n - 1 pixels. The first
    blocks of stages three and four have the same dilation as the other blocks, 2 and 4, which requires output stride 8.
    By default, the network sees colours in [0, 255], minus Caffe's means.

    Args:
        name: resnet50s or resnet101s.
        **options: other arguments of :class:`~ccnet.models.backbone.TimmBackbone`.

    Raises:
        ValueError: as for :class:`~ccnet.models.backbone.TimmBackbone`, or the output stride is not 8.
    """

    def __init__(self, name: str, **options: Any):
        settings = {key: value for key, value in options.items() if value is not None}
        super().__init__(name, **(_STATISTICS | settings))
        if self.output_stride != 8:
            raise ValueError(f"output_stride is {self.output_stride}, but the authors' network has 8")
        net: Any = self.net
        net.maxpool.ceil_mode = True
        for stage, dilation in ((net.layer3, 2), (net.layer4, 4)):
            first = stage[0].conv2
            first.dilation = first.padding = (dilation, dilation)
