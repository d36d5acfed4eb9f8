"""Layers on (N, H, W, C) arrays that compute the same as torch's, in the dtype of their input."""

# JAX types a few of its functions in part only.
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jax import Array, lax
from torch import Tensor, nn

Twin = Callable[[nn.Module], Any]  # makes the twin of a part; see models.nnx.twins.twin


def from_torch(tensor: Tensor) -> Array:
    """Convert a torch parameter, its gradient or its average to the layout of its twin: convolutions (H, W, I, O)."""
    array = tensor.detach().cpu().numpy()
    return jnp.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)


def to_torch(array: Array) -> Tensor:
    """Convert back: the inverse of :func:`from_torch`."""
    values = np.asarray(array)
    return torch.from_numpy(np.array(values.transpose(3, 2, 0, 1) if values.ndim == 4 else values, order="C"))


def parameter(tensor: Tensor) -> nnx.Param[Array]:
    """Convert a torch parameter to a trainable variable."""
    return nnx.Param(from_torch(tensor))


def statistic(tensor: Tensor) -> nnx.BatchStat[Array]:
    """Convert a torch buffer to a variable that is not trained."""
    return nnx.BatchStat(jnp.asarray(tensor.detach().cpu().numpy()))


class Conv(nnx.Module):
    """``nn.Conv2d`` with zero padding.

    Args:
        conv: the torch layer, whose settings and weights it copies.
    """

    def __init__(self, conv: nn.Conv2d):
        self.weight = parameter(conv.weight)
        self.bias = None if conv.bias is None else parameter(conv.bias)
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        if isinstance(conv.padding, str):  # "same"; all kernels here are then odd, with stride 1
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
        return self._add_bias(x)

    def pointwise(self, x: Array) -> Array:
        """Apply a 1x1 convolution over any number of spatial axes, (N, *S, C) -> (N, *S, out)."""
        return self._add_bias(x @ self.weight[0, 0].astype(x.dtype))

    def _add_bias(self, x: Array) -> Array:
        return x if self.bias is None else x + self.bias[...].astype(x.dtype)


class BatchNorm(nnx.Module):
    """``nn.BatchNorm2d``, or timm's with its ReLU6; statistics in float32 or wider, the running variance unbiased.

    Args:
        norm: the torch layer, whose settings, weights and statistics it copies.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        mean, var, count, momentum = norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum
        assert mean is not None and var is not None and count is not None and momentum is not None  # torch's defaults
        self.weight, self.bias = parameter(norm.weight), parameter(norm.bias)
        self.running_mean, self.running_var = statistic(mean), statistic(var)
        self.num_batches_tracked = statistic(count.int())
        self.momentum, self.eps = momentum, norm.eps
        act = getattr(norm, "act", None)
        self.limit = 6 if isinstance(act, nn.ReLU6) else None

    def __call__(self, x: Array, train: bool = False) -> Array:
        """(N, H, W, C) -> (N, H, W, C); with ``train`` by the statistics of the batch, which update the running ones.

        Raises:
            ValueError: a batch with a single value per channel in training.
        """
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
    """``nn.Sequential``: layers named by their index, as in torch.

    Args:
        layers: modules of (array, train) -> array.
    """

    def __init__(self, layers: Sequence[nnx.Module]):
        self.length = len(layers)
        for index, layer in enumerate(layers):
            setattr(self, str(index), layer)

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, str(index)) for index in range(self.length))

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the layers in order."""
        for layer in self:
            x = layer(x, train)
        return x


class Pool(nnx.Module):
    """``nn.MaxPool2d``, ``nn.AvgPool2d`` with ceil_mode, and timm's average with "same" padding.

    Args:
        kind: "max", "average" or "same".
        kernel, stride, padding: of the square window, pixels; padding for "max" only.
    """

    def __init__(self, kind: str, kernel: int, stride: int, padding: int = 0):
        self.kind, self.kernel, self.stride, self.padding = kind, kernel, stride, padding

    def __call__(self, x: Array, train: bool = False) -> Array:
        """(N, H, W, C) -> (N, h, w, C)."""
        window, steps = (1, self.kernel, self.kernel, 1), (1, self.stride, self.stride, 1)
        if self.kind == "max":
            around = (self.padding, self.padding)
            padding = ((0, 0), around, around, (0, 0))
            return lax.reduce_window(x, -jnp.inf, lax.max, window, steps, padding)
        # Windows may reach past the end: torch's ceil_mode averages over the existing pixels, timm's "same" average
        # also counts the padded zeros.
        over = [-(-side // self.stride) * self.stride - side + self.kernel - self.stride for side in x.shape[1:3]]
        padding = ((0, 0), (0, over[0]), (0, over[1]), (0, 0))
        total = lax.reduce_window(x, 0.0, lax.add, window, steps, padding)
        if self.kind == "same":
            return total / self.kernel**2
        count = lax.reduce_window(jnp.ones_like(x[:1, :, :, :1]), 0.0, lax.add, window, steps, padding)
        return total / count


class Activation(nnx.Module):
    """ReLU, ReLU6 or leaky ReLU.

    Args:
        limit: the largest value, 6 for ReLU6.
        slope: of negative values, for leaky ReLU.
    """

    def __init__(self, limit: float | None = None, slope: float = 0.0):
        self.limit, self.slope = limit, slope

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Any shape -> the same shape."""
        return jnp.where(x > 0, x, self.slope * x) if self.slope else jnp.clip(x, 0, self.limit)


def dropout2d(x: Array, rate: float, key: Array | None) -> Array:
    """Zero whole channels of each image, (N, *S, C), as ``nn.Dropout2d`` does in training.

    Args:
        x: (N, *S, C).
        rate: the probability of a channel to be zeroed.
        key: the random key.

    Raises:
        ValueError: no key, unless ``rate`` is 0.
    """
    if not rate:
        return x
    if key is None:
        raise ValueError("in training the network needs a random key for its dropout: give key=jax.random.key(...)")
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1]))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def resize(x: Array, size: Sequence[int], align_corners: bool = True) -> Array:
    """Resize bilinearly, (N, H, W, C) -> (N, *size, C), like torch's ``interpolate``."""
    rows, columns = (_linear(old, new, align_corners) for old, new in zip(x.shape[1:3], size, strict=True))
    return _along_both(x, rows, columns)


def adaptive_average(x: Array, bins: int) -> Array:
    """(N, H, W, C) -> (N, bins, bins, C), like torch's ``adaptive_avg_pool2d``."""
    return _along_both(x, *(_cells(side, bins) for side in x.shape[1:3]))


def _along_both(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Multiply by (new, old) matrices along height and width; products are fast forward and backward."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x = jnp.einsum("hi,niwc->nhwc", rows.astype(wide), x.astype(wide), precision="highest")
    return jnp.einsum("wj,nhjc->nhwc", columns.astype(wide), x, precision="highest")


def _linear(old: int, new: int, align_corners: bool) -> np.ndarray:
    """Return the (new, old) matrix of linear interpolation."""
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
    """Return the (new, old) matrix that averages each of ``new`` cells."""
    matrix = np.zeros((new, old))
    for cell in range(new):
        start, end = cell * old // new, -(-(cell + 1) * old // new)
        matrix[cell, start:end] = 1 / (end - start)
    return matrix
