"""Segmentation networks: a timm backbone, a context head, an auxiliary head."""

from .criss_cross import CrissCrossAttention, RecurrentCrissCrossAttention
from .factory import create_model, list_models
from .published.importing import import_checkpoint

__all__ = ["CrissCrossAttention", "RecurrentCrissCrossAttention", "create_model", "import_checkpoint", "list_models"]
