"""Predict images outside any data set: find the files, run the network, and write the results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
