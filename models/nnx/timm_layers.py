"""Flax NNX twins of layers in timm's newer backbones, for (N, H, W, C) arrays."""

# Some JAX functions are only partially typed.

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from .convolution import convolve
from .layers import Layers
from .torch_arrays import parameter


class Linear(nnx.Module):
    """Counterpart of ``nn.Linear``, applied to the channels.

    Args:
        linear: the torch layer whose weights are copied.
    """

    def __init__(self, linear: Any):
        self.weight = parameter(linear.weight)
        self.bias = None if linear.bias is None else parameter(linear.bias)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the layer: (N, H, W, C) -> (N, H, W, out)."""
        x = x @ self.weight[...].T.astype(x.dtype)
        return x if self.bias is None else x + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Counterpart of timm's ``LayerNorm`` and ``LayerNorm2d``, computed in float32 or wider.

    Args:
        norm: the torch layer whose settings and weights are copied.
    """

    def __init__(self, norm: Any):
        self.weight = parameter(norm.weight)
        self.bias = None if norm.bias is None else parameter(norm.bias)
        self.eps = norm.eps

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Normalise the channels of each pixel; the shape (N, H, W, C) is unchanged."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(-1, keepdims=True)
        normal = centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + self.eps) * self.weight[...]
        return (normal if self.bias is None else normal + self.bias[...]).astype(x.dtype)


class GlobalResponseNorm(nnx.Module):
    """Counterpart of timm's ``GlobalResponseNorm`` (ConvNeXt V2), computed in float32 or wider.

    Args:
        norm: the torch layer whose settings and weights are copied.
    """

    def __init__(self, norm: Any):
        self.weight, self.bias, self.eps = parameter(norm.weight), parameter(norm.bias), norm.eps

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Rescale each channel by its norm over the image; the shape (N, H, W, C) is unchanged."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        square = (wide**2).sum((1, 2), keepdims=True)
        norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)  # sqrt has no derivative at 0
        response = norm / (norm.mean(-1, keepdims=True) + self.eps)
        return (wide + self.weight[...] * wide * response + self.bias[...]).astype(x.dtype)


class LayerScale(nnx.Module):
    """Counterpart of timm's ``LayerScale2d``: multiplies each channel by a learned factor.

    Args:
        scale: the torch layer whose weights are copied.
    """

    def __init__(self, scale: Any):
        self.gamma = parameter(scale.gamma)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the layer; the shape (N, H, W, C) is unchanged."""
        return x * self.gamma[...].astype(x.dtype)


class MixedConv(Layers):
    """Counterpart of timm's ``MixedConv2d``: convolves groups of channels with kernels of different sizes.

    Args:
        convs: the twins of the convolutions.
        channels: number of input channels of each convolution.
    """

    def __init__(self, convs: Sequence[nnx.Module], channels: Sequence[int]):
        super().__init__(convs)
        self.ends = tuple(accumulate(channels))[:-1]

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the convolutions: (N, H, W, C) -> (N, h, w, out)."""
        parts = jnp.split(x, self.ends, axis=-1)
        return jnp.concatenate([conv(part) for conv, part in zip(self, parts, strict=True)], axis=-1)


class BlurPool(nnx.Module):
    """Counterpart of timm's ``BlurPool2d``: a binomial blur followed by subsampling.

    Args:
        pool: the timm layer whose settings are copied.
    """

    def __init__(self, pool: Any):
        self.size, self.stride, self.padding = pool.filt_size, pool.stride, tuple(pool.padding)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the pooling: (N, H, W, C) -> (N, h, w, C)."""
        left, right, top, bottom = self.padding
        x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), mode="reflect")
        taps = np.poly1d([0.5, 0.5]) ** (self.size - 1)
        kernel = np.outer(taps.coeffs, taps.coeffs).astype(np.float32)[..., None, None]
        channels = x.shape[-1]
        weights = jnp.asarray(np.tile(kernel, (1, 1, 1, channels)), x.dtype)
        return convolve(x, weights, (self.stride, self.stride), "VALID", groups=channels)
