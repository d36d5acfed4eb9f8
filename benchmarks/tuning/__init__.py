"""The search for the fastest tile sizes on a GPU: candidates, parallel compilation, timing, and the table they fill."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
