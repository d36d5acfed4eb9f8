"""Segmentation networks: a timm backbone, a context head, an auxiliary head."""

from models.criss_cross import CrissCrossAttention, RecurrentCrissCrossAttention
from models.factory import create_model, list_models
from models.published.importing import import_checkpoint

__all__ = ["CrissCrossAttention", "RecurrentCrissCrossAttention", "create_model", "import_checkpoint", "list_models"]
