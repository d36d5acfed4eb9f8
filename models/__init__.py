"""Networks for semantic segmentation, human parsing and instance segmentation, built on timm backbones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
