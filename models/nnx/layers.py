"""Counterparts of torch layers for (N, H, W, C) arrays; they compute in the dtype of their input."""

# Some JAX functions are only partially typed.

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from .convolution import convolve
from .torch_arrays import parameter, statistic

Twin = Callable[[Any], Any]  # converts a torch submodule, or a native Part, to its twin


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
