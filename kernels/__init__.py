"""The attention operator. Importing this package imports neither torch nor jax nor triton."""

from .operator import criss_cross_attention, criss_cross_residual, criss_cross_weights
from .precision import set_float32_precision

__all__ = ["criss_cross_attention", "criss_cross_residual", "criss_cross_weights", "set_float32_precision"]
