"""Losses for torch tensors and JAX arrays. This package imports no other part of the project.

The edge loss and the detection loss support torch only.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
