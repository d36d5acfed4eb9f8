"""CCNet: criss-cross attention for segmentation, with fused Triton kernels, for PyTorch and JAX.

from ccnet import create_model, criss_cross_attention
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> the package that defines it. Loaded when asked for: `import ccnet` loads neither torch nor jax.
_EXPORTS = {
    "criss_cross_attention": "kernels",
    "criss_cross_residual": "kernels",
    "criss_cross_weights": "kernels",
    "CrissCrossAttention": "models",
    "RecurrentCrissCrossAttention": "models",
    "create_model": "models",
    "import_checkpoint": "models",
    "list_models": "models",
    "category_consistent_loss": "losses",
}
__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
