"""Derive the optimiser, frozen layers, class weights and length of a run from its configuration, and check it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
