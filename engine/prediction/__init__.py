"""Predict images that belong to no data set: their files, the network that predicts them, what is written."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
