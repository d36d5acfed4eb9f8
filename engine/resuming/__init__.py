"""Start or resume a run: find the checkpoint to continue from, and the configuration to continue with."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
