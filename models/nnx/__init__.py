"""The networks in Flax NNX, channels-last: twins of the torch networks, weight for weight.

A twin is made from a torch module and takes over its settings and its weights, so the YAML files, timm's pretrained
weights and this project's checkpoints serve both frameworks; :func:`state_dict` gives the weights back.
"""

# pyright: basic
# lazy_loader comes without types; __init__.pyi has those of this package.

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
