"""Criss-cross attention: the public operator, its Triton kernels, and its implementations in torch and JAX."""

# pyright: basic
# lazy_loader is untyped; __init__.pyi declares the types of this package.

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
