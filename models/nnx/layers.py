"""Counterparts of torch layers for (N, H, W, C) arrays; they compute in the dtype of their input."""

# Some JAX functions are only partially typed.
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from .convolution import convolve

if TYPE_CHECKING:  # networks loaded from weight files do not need torch
    from torch import Tensor

Twin = Callable[[Any], Any]  # converts a torch submodule, or a native Part, to its twin


def from_torch(tensor: "Tensor | np.ndarray") -> Array:
    """Convert a torch parameter, or an array in torch's layout, to the twin's: (H, W, I, O) for convolutions."""
    array = _numpy(tensor)
    return jnp.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)


def _numpy(tensor: Any) -> np.ndarray:
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # torch and NumPy share no bfloat16
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy()


def to_torch(array: Array) -> "Tensor":
    """Convert a parameter to torch's layout, the inverse of :func:`from_torch`."""
    values = np.asarray(array)
    return statistic_to_torch(values.transpose(3, 2, 0, 1) if values.ndim == 4 else values)


def statistic_to_torch(array: "Array | np.ndarray") -> "Tensor":
    """Convert a non-trainable array to a tensor, the inverse of :func:`statistic`."""
    import torch

    half = array.dtype == jnp.bfloat16
    tensor = torch.from_numpy(np.array(array, np.float32 if half else None, order="C"))
    return tensor.bfloat16() if half else tensor


def parameter(tensor: "Tensor | np.ndarray") -> nnx.Param[Array]:
    """Convert a torch parameter, or an array in torch's layout, to a trainable variable."""
    return nnx.Param(from_torch(tensor))


def statistic(tensor: "Tensor | np.ndarray", dtype: Any = None) -> nnx.BatchStat[Array]:
    """Convert a torch buffer or an array to a non-trainable variable."""
    return nnx.BatchStat(jnp.asarray(_numpy(tensor), dtype))


class Modal(nnx.Module):
    """A module that can be called in training mode and in evaluation mode.

    Attributes:
        deterministic: whether calls without ``train`` run in evaluation mode, the default. Flax's ``train()`` and
            ``eval()`` set it, and so does ``nnx.view`` in the module that it returns.
    """

    def __init__(self):
        self.deterministic = True

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set the mode unless it is None; called by ``nnx.view``."""
        if deterministic is not None:
            self.deterministic = deterministic

    def trains(self, train: bool | None) -> bool:
        """Return whether a call with this ``train`` argument runs in training mode."""
        return not self.deterministic if train is None else train


class Conv(nnx.Module):
    """Counterpart of ``nn.Conv2d`` with zero padding, and of timm's ``Conv2dSame``.

    Args:
        conv: the torch layer whose settings and weights are copied.
        same: pad as in TensorFlow's "SAME", regardless of the layer's own padding.
    """

    def __init__(self, conv: Any, same: bool = False):
        self.weight = parameter(conv.weight)
        self.bias = None if conv.bias is None else parameter(conv.bias)
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        named = "same" if same else conv.padding
        self.padding = named.upper() if isinstance(named, str) else tuple((side, side) for side in named)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the convolution: (N, H, W, C) -> (N, h, w, out)."""
        weight = self.weight[...].astype(x.dtype)
        x = convolve(x, weight, self.stride, self.padding, self.dilation, self.groups)
        return self._add_bias(x)

    def pointwise(self, x: Array) -> Array:
        """Apply a 1x1 convolution over any number of spatial axes: (N, *S, C) -> (N, *S, out)."""
        return self._add_bias(x @ self.weight[0, 0].astype(x.dtype))

    def _add_bias(self, x: Array) -> Array:
        return x if self.bias is None else x + self.bias[...].astype(x.dtype)


class BatchNorm(nnx.Module):
    """Counterpart of ``nn.BatchNorm2d``, and of timm's batch norm with a built-in activation.

    Batch statistics are computed in float32 or wider; the running variance is unbiased.

    Args:
        norm: the torch layer whose settings, weights and statistics are copied.
        act: the twin of the activation that follows, if any.

    Attributes:
        held: whether training, too, normalises with the running statistics and leaves them unchanged.
    """

    def __init__(self, norm: Any, act: Any = None):
        mean, var, count, momentum = norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum
        if mean is None or var is None or count is None or momentum is None:
            raise ValueError("JAX supports batch norm only with running statistics and a momentum")
        self.weight, self.bias = parameter(norm.weight), parameter(norm.bias)
        self.running_mean, self.running_var = statistic(mean), statistic(var)
        self.num_batches_tracked = statistic(count, jnp.int32)
        self.momentum, self.eps = momentum, norm.eps
        self.act = act
        self.held = False

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Normalise (N, H, W, C); with ``train``, use the batch statistics and update the running ones.

        Raises:
            ValueError: in training, the batch has only one value per channel.
        """
        if train and not self.held:
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
        return normal if self.act is None else self.act(normal)


def hold_statistics(network: nnx.Module, names: Iterable[str]) -> None:
    """Keep the named batch norms of a network in evaluation mode; names of other modules are ignored."""
    for name in names:
        module: Any = network
        for part in name.split("."):
            module = getattr(module, part, None)
        if isinstance(module, BatchNorm):
            module.held = True


class Layers(nnx.Module):
    """Counterpart of ``nn.Sequential``, with layers named by their index as in torch.

    Args:
        layers: modules that map (array, train) to an array.
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


class NamedLayers(nnx.Module):
    """Counterpart of a timm module that applies named submodules in order, such as an MLP.

    Args:
        module: the timm module.
        twin: converts a submodule to its twin.
        parts: names of the submodules, in order.
    """

    def __init__(self, module: Any, twin: Twin, parts: tuple[str, ...]):
        self.parts = parts
        for name in parts:
            setattr(self, name, twin(getattr(module, name)))

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the submodules: (N, H, W, C) -> (N, h, w, out)."""
        for name in self.parts:
            x = getattr(self, name)(x, train)
        return x


class Pool(nnx.Module):
    """Counterpart of ``nn.MaxPool2d``, ``nn.AvgPool2d`` and timm's ``AvgPool2dSame``.

    Args:
        kind: "max", "average" (``nn.AvgPool2d`` with ceil_mode), "valid" (without) or "same".
        kernel, stride, padding: size, stride and padding of the window in pixels, each one number or (height, width);
            ``padding`` only applies to "max".
    """

    def __init__(self, kind: str, kernel: Any, stride: Any, padding: Any = 0):
        self.kind, self.kernel, self.stride, self.padding = kind, _pair(kernel), _pair(stride), _pair(padding)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the pooling: (N, H, W, C) -> (N, h, w, C)."""
        window, steps = (1, *self.kernel, 1), (1, *self.stride, 1)
        if self.kind == "max":
            padding = ((0, 0), *((side, side) for side in self.padding), (0, 0))
            return lax.reduce_window(x, -jnp.inf, lax.max, window, steps, padding)
        if self.kind in ("same", "valid"):  # "same" includes the padding zeros in the average
            return lax.reduce_window(x, 0.0, lax.add, window, steps, self.kind.upper()) / math.prod(self.kernel)
        # With ceil_mode, windows may extend past the border; torch averages over the pixels inside the image.
        over = [_overhang(*sizes) for sizes in zip(x.shape[1:3], self.kernel, self.stride, strict=True)]
        padding = ((0, 0), (0, over[0]), (0, over[1]), (0, 0))
        total = lax.reduce_window(x, 0.0, lax.add, window, steps, padding)
        count = lax.reduce_window(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, lax.add, window, steps, padding)
        return total / count


def _overhang(size: int, kernel: int, stride: int) -> int:
    """Return the number of pixels by which torch's last window extends past the border with ceil_mode."""
    windows = 1 - (kernel - size) // stride
    if (windows - 1) * stride >= size:  # torch omits a window that starts outside the image
        windows -= 1
    return max((windows - 1) * stride + kernel - size, 0)


def _pair(sides: Any) -> tuple[int, int]:
    """Return a torch setting, one number or a pair, as (height, width)."""
    return (sides, sides) if isinstance(sides, int) else tuple(sides)


class Activation(nnx.Module):
    """An elementwise activation of ``jax.nn``.

    It stores the name of the function, because ``pickle`` rejects the functions of ``jax.nn``, and ``copy.deepcopy``
    replaces them by others, so that the copy of a network would differ in its graph definition.

    Args:
        name: name of the function in ``jax.nn``.
        arguments: its arguments after the array, such as a negative slope.
    """

    def __init__(self, name: str, *arguments: Any):
        self.name, self.arguments = name, arguments

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the layer; the shape is unchanged."""
        return getattr(jax.nn, self.name)(x, *self.arguments)


def dropout2d(x: Array, rate: float, key: Array | None) -> Array:
    """Zero entire channels of each image, as ``nn.Dropout2d`` does in training.

    Args:
        x: (N, *S, C).
        rate: probability of zeroing a channel.
        key: random key; may be None if ``rate`` is 0.

    Raises:
        ValueError: ``key`` is None and ``rate`` is not 0.
    """
    if not rate:
        return x
    if key is None:
        raise ValueError("dropout needs a random key in training: pass key=jax.random.key(...)")
    if rate == 1:
        return jnp.zeros_like(x)  # a division by 0 below would give NaN gradients
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1]))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def resize(x: Array, size: Sequence[int], align_corners: bool = True) -> Array:
    """Resize bilinearly like torch's ``interpolate``: (N, H, W, C) -> (N, *size, C)."""
    rows, columns = (_linear(old, new, align_corners) for old, new in zip(x.shape[1:3], size, strict=True))
    return _along_both(x, rows, columns)


def adaptive_average(x: Array, bins: int) -> Array:
    """Pool like torch's ``adaptive_avg_pool2d``: (N, H, W, C) -> (N, bins, bins, C)."""
    return _along_both(x, *(_cells(side, bins) for side in x.shape[1:3]))


def _along_both(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Multiply by (new, old) matrices along height and width, which is fast in the forward and the backward pass."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x = jnp.einsum("hi,niwc->nhwc", rows.astype(wide), x.astype(wide), precision="highest")
    return jnp.einsum("wj,nhjc->nhwc", columns.astype(wide), x, precision="highest")


def _linear(old: int, new: int, align_corners: bool) -> np.ndarray:
    """Return the (new, old) matrix of linear interpolation from ``old`` to ``new`` pixels."""
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
    """Return the (new, old) matrix of adaptive average pooling from ``old`` pixels to ``new`` bins."""
    matrix = np.zeros((new, old))
    for cell in range(new):
        start, end = cell * old // new, -(-(cell + 1) * old // new)
        matrix[cell, start:end] = 1 / (end - start)
    return matrix
