"""Flax NNX counterparts ("twins") of the torch networks, channels-last and with the same weights.

A twin is built from a torch module and copies its settings and weights, so the YAML files, timm's pretrained weights
and this project's checkpoints work with both frameworks; :func:`state_dict` converts the weights back.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
