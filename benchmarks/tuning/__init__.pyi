from .tune import tune_kernels as tune_kernels
from .warm_cache import compile_ahead as compile_ahead
