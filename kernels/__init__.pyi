from .jax_ops.targets import set_jax_target as set_jax_target
from .operator import criss_cross_attention as criss_cross_attention
from .operator import criss_cross_residual as criss_cross_residual
from .operator import criss_cross_weights as criss_cross_weights
from .precision import set_float32_precision as set_float32_precision
from .torch_ops.joined import split_channels as split_channels
from .torch_ops.recompute import recomputed_projection as recomputed_projection
