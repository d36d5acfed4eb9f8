"""Descriptions of layers, made from the tensors of a weight file, from which twins are built without torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from ..layers import Activation, BatchNorm, Conv, Layers, Twin
from ..resampling import Pool


class Part:
    """Description of a layer, which replaces the torch module in the constructor of its twin.

    It has the attributes that the constructor reads.

    Args:
        make: the constructor, called with the description and :func:`build`.
        **attributes: settings, tensors in torch's layout and descriptions of submodules.

    Attributes:
        weight: the kernel of a convolution.
    """

    weight: np.ndarray

    def __init__(self, make: Callable[[Any, Twin], nnx.Module], **attributes: Any):
        self.make = make
        vars(self).update(attributes)


def build(part: Part) -> nnx.Module:
    """Build the twin from the description of a layer."""
    return part.make(part, build)


class Weights:
    """View of the tensors of one module in a state dict; reads are recorded.

    Args:
        tensors: the state dict.
        prefix: the module's name followed by a dot; empty for the whole network.

    Attributes:
        used: the full names of all tensors that have been read, shared with the views of submodules.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str = "", used: set[str] | None = None):
        self.tensors, self.prefix = tensors, prefix
        self.used: set[str] = set() if used is None else used

    def at(self, name: str | int) -> "Weights":
        """Return the tensors of a submodule."""
        return Weights(self.tensors, f"{self.prefix}{name}.", self.used)

    def has(self, name: str | int) -> bool:
        """Return whether there is a submodule or a tensor of this name."""
        full = f"{self.prefix}{name}"
        return full in self.tensors or any(key.startswith(f"{full}.") for key in self.tensors)

    def count(self) -> int:
        """Return the number of submodules named 0, 1, and so on."""
        number = 0
        while self.has(number):
            number += 1
        return number

    def vector(self, name: str, length: int) -> np.ndarray:
        """Return a tensor by name; raise ValueError unless its shape is (length,)."""
        tensor = self[name]
        if tensor.shape != (length,):
            raise ValueError(f"the tensor {self.prefix}{name} has shape {tensor.shape} instead of ({length},)")
        return tensor

    def __getitem__(self, name: str) -> np.ndarray:
        full = self.prefix + name
        if full not in self.tensors:
            raise ValueError(f"the weight file has no tensor {full}, which its configuration requires")
        self.used.add(full)
        return self.tensors[full]


def conv(
    weights: Weights, *, stride: int = 1, dilation: int = 1, channels: int | None = None, bias: bool = False
) -> Part:
    """Describe a convolution with "same" padding.

    Args:
        weights: the tensors of the convolution.
        stride, dilation: stride and dilation along both axes.
        channels: number of input channels of a grouped convolution; None without groups.
        bias: whether the convolution has a bias.
    """
    kernel = weights["weight"]
    if kernel.ndim != 4:
        raise ValueError(f"the tensor {weights.prefix}weight of a 2D convolution has shape {kernel.shape}")
    padding = tuple(dilation * (side - 1) // 2 for side in kernel.shape[2:])
    groups = 1 if channels is None else channels // kernel.shape[1]
    return Part(
        lambda part, _: Conv(part), weight=kernel, padding=padding, groups=groups, stride=(stride, stride),
        dilation=(dilation, dilation), bias=weights.vector("bias", len(kernel)) if bias else None,
    )  # fmt: skip


def batch_norm(weights: Weights, after: Part, act: str | None = None) -> Part:
    """Describe a batch norm with PyTorch's default settings.

    Args:
        weights: the tensors of the batch norm.
        after: the convolution before it.
        act: name in ``jax.nn`` of the activation that follows, if any.
    """
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {name: weights.vector(name, len(after.weight)) for name in names}
    following = None if act is None else Activation(act)
    return Part(
        lambda part, _: BatchNorm(part, following), **tensors, num_batches_tracked=weights["num_batches_tracked"],
        momentum=0.1, eps=1e-5,
    )  # fmt: skip


def activation(name: str, *settings: Any) -> Part:
    """Describe an activation of ``jax.nn``."""
    return Part(lambda part, twin: Activation(name, *settings))


def sequence(parts: Sequence[Part]) -> Part:
    """Describe layers that are applied in order; an empty sequence is the identity."""
    return Part(lambda part, twin: Layers([twin(layer) for layer in part.layers]), layers=parts)


def pool(kind: str, kernel: int, stride: int, padding: int = 0) -> Part:
    """Describe a pooling layer; see :class:`~ccnet.models.nnx.resampling.Pool`."""
    return Part(lambda part, twin: Pool(kind, kernel, stride, padding))


def conv_bn_relu(weights: Weights, *, dilation: int = 1, negative_slope: float = 0.0) -> Part:
    """Describe ``ccnet.models.layers.conv_bn_relu``."""
    act = activation("leaky_relu", negative_slope) if negative_slope else activation("relu")
    first = conv(weights.at(0), dilation=dilation)
    return sequence([first, batch_norm(weights.at(1), first), act])
