"""The backbone of the CCNet authors' published networks."""

from ..backbone import TimmBackbone

# Of the three channels, in units of 0 to 255: Caffe's mean colour, no standard deviation.
_MEAN = (122.67891434, 116.66876762, 104.00698793)


class CaffeResNet(TimmBackbone):
    """timm's deep-stem ResNet (64, 64 and 128 channels), where the authors' differs from it changed to theirs.

    The maximum pooling rounds sizes up, which gives one more row or column for images of 4n or 4n - 1 pixels; stages
    three and four are dilated by 2 and 4 in their first blocks too, not only from the second on; and colours are on
    the scale of 0 to 255.

    Args:
        name: resnet50s or resnet101s.
        **options: of :class:`models.backbone.TimmBackbone`.
    """

    def __init__(self, name: str, **options):
        super().__init__(name, **options)
        self.net.maxpool.ceil_mode = True
        for stage, dilation in ((self.net.layer3, 2), (self.net.layer4, 4)):
            first = stage[0].conv2
            first.dilation = first.padding = (dilation, dilation)
        self.mean = tuple(channel / 255 for channel in _MEAN)
        self.std = (1 / 255,) * 3
