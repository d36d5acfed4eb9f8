"""Losses of the semantic networks. This package imports nothing else of the project."""

from .category_consistent import CategoryConsistent, CategoryConsistentLoss, category_consistent_loss
from .cross_entropy import CrossEntropy, cross_entropy
from .ohem import OhemCrossEntropy, ohem_cross_entropy
from .weighted_sum import WeightedSum

__all__ = [
    "CategoryConsistent",
    "CategoryConsistentLoss",
    "CrossEntropy",
    "OhemCrossEntropy",
    "WeightedSum",
    "category_consistent_loss",
    "cross_entropy",
    "ohem_cross_entropy",
]
