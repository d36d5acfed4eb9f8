"""Channels-last Flax NNX twins of the context modules."""

# Some JAX functions are only partially typed.

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ...kernels import criss_cross_residual
from ...kernels.jax_ops.gradients import KEPT
from .layers import Conv, Twin
from .resampling import adaptive_average, resize
from .torch_arrays import parameter


class CrissCrossAttention(nnx.Module):
    """Counterpart of ``ccnet.models.CrissCrossAttention``."""

    def __init__(self, module: Any, twin: Twin):
        self.query_conv, self.key_conv = twin(module.query_conv), twin(module.key_conv)
        self.value_conv = twin(module.value_conv)
        self.gamma = None if module.gamma is None else parameter(module.gamma)
        self.axes, self.recompute, self.backend = module.axes, module.recompute, module.backend

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the attention; the shape (N, *S, C), with one to three spatial dimensions S, is unchanged."""
        convolutions = (self.query_conv, self.key_conv, self.value_conv)
        gamma = jnp.ones(1) if self.gamma is None else self.gamma[...]
        if not all(map(_is_plain, convolutions)):
            query, key, value = (_project(conv, x) for conv in convolutions)
            return criss_cross_residual(
                query, key, value, x, gamma, axes=self.axes, channel_axis=-1, backend=self.backend
            )
        weights = [(conv.weight[0, 0], conv.bias[...]) for conv in convolutions]

        def attend(x: Array, weights: list[tuple[Array, Array]], gamma: Array) -> Array:
            query, key, value = (x @ weight.astype(x.dtype) + bias.astype(x.dtype) for weight, bias in weights)
            return criss_cross_residual(
                query, key, value, x, gamma, axes=self.axes, channel_axis=-1, backend=self.backend
            )

        if self.recompute:  # only the projections: the arrays that the attention saves are named
            attend = jax.checkpoint(attend, policy=jax.checkpoint_policies.save_only_these_names(KEPT))
        return attend(x, weights, gamma)


def _is_plain(conv: Any) -> bool:
    """Return False for a projection that must be called as a module: it was replaced, for example by a LoRA layer."""
    return (
        type(conv) is Conv
        and conv.weight.shape[:2] == conv.stride == (1, 1)
        and conv.groups == 1
        and conv.bias is not None
    )


def _project(conv: Any, x: Array) -> Array:
    """Apply a projection to (N, *S, C). One that was replaced is called with an image, (N, H, W, C), for any S."""
    if _is_plain(conv):
        return conv.pointwise(x)
    projected = conv(x.reshape(x.shape[0], math.prod(x.shape[1:-2]), *x.shape[-2:]))
    return projected.reshape(*x.shape[:-1], projected.shape[-1])


class ParallelHorizontalVertical(nnx.Module):
    """Counterpart of ``ccnet.models.context.horizontal_vertical.ParallelHorizontalVertical``."""

    def __init__(self, module: Any, twin: Twin):
        self.hv, self.vh = twin(module.hv), twin(module.vh)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the module; the shape (N, H, W, C) is unchanged."""
        return self.hv(x, train) + self.vh(x, train)


class NonLocal(nnx.Module):
    """Counterpart of ``ccnet.models.context.non_local.NonLocal``; the (H W, H W) attention matrix is materialised."""

    def __init__(self, module: Any, twin: Twin):
        self.query_conv, self.key_conv = twin(module.query_conv), twin(module.key_conv)
        self.value_conv = twin(module.value_conv)
        self.gamma = None if module.gamma is None else parameter(module.gamma)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the module; the shape (N, H, W, C) is unchanged."""
        projected = (_project(conv, x) for conv in (self.query_conv, self.key_conv, self.value_conv))
        pixels = x.shape[0], x.shape[1] * x.shape[2]  # not -1, because the batch may be empty
        query, key, value = (array.reshape(*pixels, array.shape[-1]) for array in projected)
        energy = jnp.einsum("npd,nqd->npq", query, key, preferred_element_type=jnp.float32)
        context = (jax.nn.softmax(energy).astype(value.dtype) @ value).reshape(x.shape)
        if self.gamma is not None:
            context = self.gamma[...].astype(x.dtype) * context
        return context + x


class PyramidPooling(nnx.Module):
    """Counterpart of ``ccnet.models.context.pyramid.PyramidPooling``."""

    def __init__(self, module: Any, twin: Twin):
        self.bins, self.align_corners = module.bins, module.align_corners
        self.branches, self.fuse = twin(module.branches), twin(module.fuse)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the module: (N, H, W, C) -> (N, H, W, out_channels)."""
        levels: list[Array] = []
        for branch, bins in zip(self.branches, self.bins, strict=True):
            cells = branch(adaptive_average(x, bins).astype(x.dtype), train)
            levels.append(resize(cells, x.shape[1:3], self.align_corners).astype(x.dtype))
        return self.fuse(jnp.concatenate([x, *levels], axis=-1), train)


class AtrousPyramid(nnx.Module):
    """Counterpart of ``ccnet.models.context.pyramid.AtrousPyramid``."""

    def __init__(self, module: Any, twin: Twin):
        self.local, self.dilated = twin(module.local), twin(module.dilated)
        self.image, self.fuse = twin(module.image), twin(module.fuse)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the module: (N, H, W, C) -> (N, H, W, out_channels)."""
        image = self.image(adaptive_average(x, 1).astype(x.dtype), train)
        branches = [self.local(x, train), *(branch(x, train) for branch in self.dilated)]
        return self.fuse(jnp.concatenate([*branches, jnp.broadcast_to(image, branches[0].shape)], axis=-1), train)


class GlobalConvolution(nnx.Module):
    """Counterpart of ``ccnet.models.context.global_convolution.GlobalConvolution``."""

    def __init__(self, module: Any, twin: Twin):
        self.left, self.right = twin(module.left), twin(module.right)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the module; the shape (N, H, W, C) is unchanged."""
        return self.left(x, train) + self.right(x, train)
