"""Benchmarks: one file or folder per mode of ``benchmark.py``, plus the timers that they share."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
