"""Layers on (N, H, W, C) arrays that compute what torch's compute, in the dtype of their input."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jax import Array, lax
from torch import nn


def from_torch(tensor) -> Array:
    """A torch parameter, or its gradient or average, in the layout of its twin: convolutions (H, W, I, O)."""
    array = tensor.detach().cpu().numpy()
    return jnp.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)


def to_torch(array: Array):
    """The way back."""
    array = np.asarray(array)
    return torch.from_numpy(np.array(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array, order="C"))


def parameter(tensor) -> nnx.Param | None:
    """A torch parameter as a trainable variable."""
    return None if tensor is None else nnx.Param(from_torch(tensor))


def statistic(tensor) -> nnx.BatchStat:
    """A torch buffer as a variable that is not trained."""
    return nnx.BatchStat(jnp.asarray(tensor.detach().cpu().numpy()))


class Conv(nnx.Module):
    """``nn.Conv2d`` with zero padding."""

    def __init__(self, conv: nn.Conv2d):
        self.weight, self.bias = parameter(conv.weight), parameter(conv.bias)
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        if conv.padding == "same":  # of odd kernels at stride 1, the only ones here
            sides = [d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        else:
            sides = conv.padding
        self.padding = tuple((side, side) for side in sides)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """(N, H, W, C) -> (N, h, w, out)."""
        x = lax.conv_general_dilated(
            x,
            self.weight[...].astype(x.dtype),
            self.stride,
            self.padding,
            rhs_dilation=self.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return x if self.bias is None else x + self.bias[...].astype(x.dtype)

    def pointwise(self, x: Array) -> Array:
        """A 1x1 convolution over any number of spatial axes, (N, *S, C) -> (N, *S, out)."""
        return x @ self.weight[0, 0].astype(x.dtype) + self.bias[...].astype(x.dtype)


class BatchNorm(nnx.Module):
    """``nn.BatchNorm2d``, or timm's with its ReLU6; statistics in float32 at least, the running variance unbiased."""

    def __init__(self, norm: nn.BatchNorm2d):
        self.weight, self.bias = parameter(norm.weight), parameter(norm.bias)
        self.running_mean, self.running_var = statistic(norm.running_mean), statistic(norm.running_var)
        self.num_batches_tracked = statistic(norm.num_batches_tracked.int())
        self.momentum, self.eps = norm.momentum, norm.eps
        act = getattr(norm, "act", None)
        self.limit = 6 if isinstance(act, nn.ReLU6) else None

    def __call__(self, x: Array, train: bool = False) -> Array:
        """(N, H, W, C) -> the same; with ``train`` by the batch's own statistics, which it notes."""
        if train:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
            count = x.size // x.shape[-1]
            if count < 2:
                raise ValueError(f"batch norm in training needs more than one value per channel, got {x.shape}")
            for running, now in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
                running[...] = (1 - self.momentum) * running[...] + self.momentum * lax.stop_gradient(now)
            self.num_batches_tracked[...] += 1
        else:
            mean, var = self.running_mean[...], self.running_var[...]
        scale = self.weight[...] * lax.rsqrt(var + self.eps)
        normal = (x * scale + (self.bias[...] - mean * scale)).astype(x.dtype)
        return normal if self.limit is None else jnp.clip(normal, 0, self.limit)


class Layers(nnx.Module):
    """``nn.Sequential``: layers by number, as torch names them."""

    def __init__(self, layers: Sequence[nnx.Module]):
        self.length = len(layers)
        for index, layer in enumerate(layers):
            setattr(self, str(index), layer)

    def __iter__(self):
        return (getattr(self, str(index)) for index in range(self.length))

    def __call__(self, x: Array, train: bool = False) -> Array:
        for layer in self:
            x = layer(x, train)
        return x


class Pool(nnx.Module):
    """``nn.MaxPool2d`` and ``nn.AvgPool2d``, and timm's average that pads to the input's size."""

    def __init__(self, kind: str, kernel: int, stride: int, padding: int = 0):
        self.kind, self.kernel, self.stride, self.padding = kind, kernel, stride, padding

    def __call__(self, x: Array, train: bool = False) -> Array:
        """(N, H, W, C) -> (N, h, w, C)."""
        window, steps = (1, self.kernel, self.kernel, 1), (1, self.stride, self.stride, 1)
        if self.kind == "max":
            padding = ((0, 0), (self.padding,) * 2, (self.padding,) * 2, (0, 0))
            return lax.reduce_window(x, -jnp.inf, lax.max, window, steps, padding)
        # Windows that reach over the end: torch's ceil_mode leaves out of the count what is not there, timm's
        # same-size average counts zeros.
        over = [-(-side // self.stride) * self.stride - side + self.kernel - self.stride for side in x.shape[1:3]]
        padding = ((0, 0), (0, over[0]), (0, over[1]), (0, 0))
        total = lax.reduce_window(x, 0.0, lax.add, window, steps, padding)
        if self.kind == "same":
            return total / self.kernel**2
        count = lax.reduce_window(jnp.ones_like(x[:1, :, :, :1]), 0.0, lax.add, window, steps, padding)
        return total / count


class Activation(nnx.Module):
    """ReLU, ReLU6 with a limit, or leaky ReLU with a slope."""

    def __init__(self, limit: float | None = None, slope: float = 0.0):
        self.limit, self.slope = limit, slope

    def __call__(self, x: Array, train: bool = False) -> Array:
        return jnp.where(x > 0, x, self.slope * x) if self.slope else jnp.clip(x, 0, self.limit)


def dropout2d(x: Array, rate: float, key: Array | None) -> Array:
    """``nn.Dropout2d`` in training: whole channels of an image are zeroed."""
    if not rate:
        return x
    if key is None:
        raise ValueError("in training the network needs a random key for its dropout: give key=jax.random.key(...)")
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1]))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def resize(x: Array, size: Sequence[int], align_corners: bool = True) -> Array:
    """Bilinear, (N, H, W, C) -> (N, *size, C), as torch's ``interpolate``."""
    rows, columns = (_linear(old, new, align_corners) for old, new in zip(x.shape[1:3], size, strict=True))
    return _along_both(x, rows, columns)


def adaptive_average(x: Array, bins: int) -> Array:
    """(N, H, W, C) -> (N, bins, bins, C), as torch's ``adaptive_avg_pool2d``."""
    return _along_both(x, *(_cells(side, bins) for side in x.shape[1:3]))


def _along_both(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Matrices (new, old) along height and width: as products they are fast forward and backward."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x = jnp.einsum("hi,niwc->nhwc", rows.astype(wide), x.astype(wide), precision="highest")
    return jnp.einsum("wj,nhjc->nhwc", columns.astype(wide), x, precision="highest")


def _linear(old: int, new: int, align_corners: bool) -> np.ndarray:
    if align_corners:
        points = np.arange(new) * ((old - 1) / max(new - 1, 1))
    else:
        points = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(min=0)
    low = np.minimum(np.floor(points).astype(int), old - 1)
    matrix = np.zeros((new, old))
    matrix[np.arange(new), low] += 1 - (points - low)
    matrix[np.arange(new), np.minimum(low + 1, old - 1)] += points - low
    return matrix


def _cells(old: int, new: int) -> np.ndarray:
    matrix = np.zeros((new, old))
    for cell in range(new):
        start, end = cell * old // new, -(-(cell + 1) * old // new)
        matrix[cell, start:end] = 1 / (end - start)
    return matrix
