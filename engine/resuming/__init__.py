"""Start a run or resume it: which checkpoint it continues from, and with which configuration."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
