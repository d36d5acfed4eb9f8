"""The data sets, one module each, and what they share: expected folders, splits, class tables and colours."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
