"""Flax NNX twins of timm's channel attention: squeeze-and-excitation, and efficient channel attention (ECA)."""

# Some JAX functions are only partially typed.
# pyright: reportUnknownMemberType=false

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from .layers import Twin
from .torch_arrays import parameter


class SqueezeExcite(nnx.Module):
    """Counterpart of timm's squeeze-and-excitation modules, which multiply each channel by a gate.

    Args:
        module: the timm module.
        twin: converts a submodule to its twin.
        parts: names of the layers that compute the gate from the average over the image, in order.
    """

    def __init__(self, module: Any, twin: Twin, parts: tuple[str, ...]):
        self.parts = parts
        for name in parts:
            setattr(self, name, twin(getattr(module, name)))

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the module; the shape (N, H, W, C) is unchanged."""
        gate = x.mean((1, 2), keepdims=True)
        for name in self.parts:
            gate = getattr(self, name)(gate, train)
        return x * gate


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
