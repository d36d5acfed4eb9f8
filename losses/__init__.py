"""Losses of the semantic networks. This package imports nothing else of the project."""

from contextlib import suppress

from .category_consistent import CategoryConsistent, CategoryConsistentLoss, category_consistent_loss
from .cross_entropy import CrossEntropy, cross_entropy
from .ohem import OhemCrossEntropy, ohem_cross_entropy
from .weighted_sum import WeightedSum

with suppress(ImportError):  # these are for torch alone, and JAX may be alone
    from .edge import EdgeCrossEntropy, balanced_edge_loss, edge_targets
    from .given import GivenLosses

__all__ = [
    "CategoryConsistent",
    "CategoryConsistentLoss",
    "CrossEntropy",
    "EdgeCrossEntropy",
    "GivenLosses",
    "OhemCrossEntropy",
    "WeightedSum",
    "balanced_edge_loss",
    "category_consistent_loss",
    "cross_entropy",
    "edge_targets",
    "ohem_cross_entropy",
]
