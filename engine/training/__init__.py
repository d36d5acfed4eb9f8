"""The training loop, its steps in torch and in JAX, and its logs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
