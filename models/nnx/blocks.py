"""Flax NNX twins of the blocks of timm's convolutional networks, with (N, H, W, C) arrays."""

# Some JAX functions are only partially typed.

from typing import Any

from flax import nnx
from jax import Array

from .layers import NamedLayers, Twin
from .torch_arrays import parameter


class ResNetBlock(nnx.Module):
    """A basic or bottleneck block of a ResNet.

    Args:
        block: the timm block.
        twin: converts a submodule to its twin.
    """

    def __init__(self, block: Any, twin: Twin):
        self.depth = 3 if hasattr(block, "conv3") else 2
        for index in range(1, self.depth + 1):
            for part in (f"conv{index}", f"bn{index}", f"act{index}"):
                setattr(self, part, twin(getattr(block, part)))
        self.aa = twin(block.aa)
        self.se = None if block.se is None else twin(block.se)
        self.downsample = None if block.downsample is None else twin(block.downsample)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the block: (N, H, W, C) -> (N, h, w, out)."""
        shortcut = x if self.downsample is None else self.downsample(x, train)
        for index in range(1, self.depth + 1):
            x = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x), train)
            if index == self.depth:
                x = (x if self.se is None else self.se(x, train)) + shortcut
            x = getattr(self, f"act{index}")(x)
            if index == self.depth - 1:
                x = self.aa(x, train)
        return x


class MobileNetBlock(nnx.Module):
    """An inverted residual block of a MobileNet or EfficientNet, with a skip connection if the shapes match.

    Each convolution is followed by batch norm. Anti-aliasing and channel attention precede the last convolution; if
    there is only one, anti-aliasing follows it.

    Args:
        block: the timm block.
        twin: converts a submodule to its twin.
        order: names of the convolutions, in order.
    """

    def __init__(self, block: Any, twin: Twin, order: tuple[str, ...]):
        self.order = order
        for index, name in enumerate(order, 1):
            setattr(self, name, twin(getattr(block, name)))
            setattr(self, f"bn{index}", twin(getattr(block, f"bn{index}")))
        self.aa, self.se = twin(block.aa), twin(block.se) if len(order) > 1 else None
        self.has_skip = block.has_skip

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the block: (N, H, W, C) -> (N, h, w, out)."""
        shortcut = x
        for index, name in enumerate(self.order, 1):
            x = getattr(self, f"bn{index}")(getattr(self, name)(x), train)
            if index == max(len(self.order) - 1, 1):
                x = self.aa(x, train)
                x = x if self.se is None else self.se(x, train)
        return x + shortcut if self.has_skip else x


class MobileNetV4Block(NamedLayers):
    """A universal inverted bottleneck of a MobileNetV4, with a skip connection if the shapes match.

    Args:
        block: the timm block.
        twin: converts a submodule to its twin.
    """

    def __init__(self, block: Any, twin: Twin):
        super().__init__(block, twin, ("dw_start", "pw_exp", "dw_mid", "se", "pw_proj", "dw_end", "layer_scale"))
        self.has_skip = block.has_skip

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the block: (N, H, W, C) -> (N, h, w, out)."""
        branch = super().__call__(x, train)
        return branch + x if self.has_skip else branch


class RegNetBlock(NamedLayers):
    """A bottleneck block of a RegNet, with squeeze-and-excitation before the last convolution.

    Args:
        block: the timm block.
        twin: converts a submodule to its twin.
    """

    def __init__(self, block: Any, twin: Twin):
        super().__init__(block, twin, ("conv1", "conv2", "se", "conv3"))
        self.act3 = twin(block.act3)
        self.downsample = None if block.downsample is None else twin(block.downsample)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the block: (N, H, W, C) -> (N, h, w, out)."""
        branch = super().__call__(x, train)
        return self.act3(branch if self.downsample is None else branch + self.downsample(x, train))


class ConvNeXtBlock(NamedLayers):
    """A block of a ConvNeXt: a depthwise convolution and an MLP, scaled and added to the input.

    Args:
        block: the timm block.
        twin: converts a submodule to its twin.
    """

    def __init__(self, block: Any, twin: Twin):
        super().__init__(block, twin, ("conv_dw", "norm", "mlp"))
        self.gamma = None if block.gamma is None else parameter(block.gamma)
        self.shortcut = twin(block.shortcut)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the block; the shape (N, H, W, C) is unchanged."""
        branch = super().__call__(x, train)
        if self.gamma is not None:
            branch = branch * self.gamma[...].astype(branch.dtype)
        return branch + self.shortcut(x, train)
