"""Losses on torch tensors and on JAX arrays. This package imports nothing else of the project.

The edge loss and the sum of a detection network's own losses are for torch alone.
"""

# pyright: basic
# lazy_loader comes without types; __init__.pyi has those of this package.

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
