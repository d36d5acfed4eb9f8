from .criss_cross import CrissCrossAttention as CrissCrossAttention
from .criss_cross import RecurrentCrissCrossAttention as RecurrentCrissCrossAttention
from .factory import create_model as create_model
from .factory import list_models as list_models
from .published.importing import import_checkpoint as import_checkpoint
