from . import kernels as kernels
from . import losses as losses
from . import models as models
from .engine.prediction.trained_network import from_pretrained as from_pretrained
from .engine.prediction.trained_network import load as load
from .kernels import criss_cross_attention as criss_cross_attention
from .kernels import criss_cross_residual as criss_cross_residual
from .kernels import criss_cross_weights as criss_cross_weights
from .losses import category_consistent_loss as category_consistent_loss
from .models import CrissCrossAttention as CrissCrossAttention
from .models import RecurrentCrissCrossAttention as RecurrentCrissCrossAttention
from .models import create_model as create_model
from .models import import_checkpoint as import_checkpoint
from .models import list_models as list_models

__version__: str
