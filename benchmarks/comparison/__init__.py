"""Comparison of the operator with other implementations: the peers, their verification and timing, and the results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
