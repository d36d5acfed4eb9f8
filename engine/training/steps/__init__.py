"""Training steps in torch and JAX, the choice between them, and the handling of non-finite steps."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
