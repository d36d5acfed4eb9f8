"""One training step in torch or in JAX, the choice between them, and what follows if a step is not finite."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
