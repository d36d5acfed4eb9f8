"""Segmentation networks: a timm backbone, a context head, an auxiliary head."""

from models.criss_cross import CrissCrossAttention, RecurrentCrissCrossAttention
from models.factory import create_model, list_models

__all__ = ["CrissCrossAttention", "RecurrentCrissCrossAttention", "create_model", "list_models"]
