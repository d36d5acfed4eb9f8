"""CCNet: criss-cross attention for segmentation, with fused Triton kernels, for PyTorch and JAX.

    from ccnet import create_model, criss_cross_attention

Public names are imported lazily: ``import ccnet`` loads neither torch nor jax.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
