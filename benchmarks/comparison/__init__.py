"""The operator beside other implementations of it: the peers, how they are verified and timed, and their results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
