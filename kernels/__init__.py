"""The attention operator. Importing this package imports neither torch nor jax nor triton."""

from .operator import criss_cross_attention, criss_cross_weights

__all__ = ["criss_cross_attention", "criss_cross_weights"]
