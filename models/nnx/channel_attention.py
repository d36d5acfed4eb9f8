"""Flax NNX twins of timm's channel attention: squeeze-and-excitation, and efficient channel attention (ECA)."""

# Some JAX functions are only partially typed.

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from .layers import NamedLayers, Twin
from .torch_arrays import parameter


class SqueezeExcite(NamedLayers):
    """Counterpart of timm's squeeze-and-excitation modules, which multiply each channel by a gate.

    The named layers compute the gate from the average over the image.
    """

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the module; the shape (N, H, W, C) is unchanged."""
        return x * super().__call__(x.mean((1, 2), keepdims=True), train)


class ChannelConvolution(nnx.Module):
    """Counterpart of an ``nn.Conv1d`` with one input and one output channel, applied along the channel axis.

    Args:
        conv: the torch layer, with an odd kernel and "same" padding.
    """

    def __init__(self, conv: Any):
        self.weight = parameter(conv.weight)

    def __call__(self, x: Array) -> Array:
        """Apply the convolution: (N, 1, 1, C) -> (N, 1, 1, C)."""
        taps = self.weight[0, 0].astype(x.dtype)
        channels, side = x.shape[-1], len(taps) // 2
        padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (side, side)))
        parts = [padded[..., start : start + channels] * taps[start] for start in range(len(taps))]
        return sum(parts[1:], start=parts[0])


class EfficientChannelAttention(nnx.Module):
    """Counterpart of timm's ``EcaModule``.

    Args:
        module: the timm module.
        twin: converts a submodule to its twin.
    """

    def __init__(self, module: Any, twin: Twin):
        self.conv, self.gate = twin(module.conv), twin(module.gate)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the module; the shape (N, H, W, C) is unchanged."""
        return x * self.gate(self.conv(x.mean((1, 2), keepdims=True)), train)
