"""Criss-cross attention: the public operator, its Triton kernels, and its implementations in torch and JAX."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
