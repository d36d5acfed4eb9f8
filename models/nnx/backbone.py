"""Flax NNX twins of timm's ResNets, EfficientNets and MobileNets, of any width, depth, stem and stride."""

from typing import Any

from flax import nnx
from jax import Array

from ..backbone import TimmBackbone
from .layers import Twin


class Residual(nnx.Module):
    """A basic or bottleneck block of a ResNet: convolutions, each followed by batch norm and an activation.

    Args:
        block: the timm block.
        twin: converts a submodule to its twin.
    """

    def __init__(self, block: Any, twin: Twin):
        self.depth = 3 if hasattr(block, "conv3") else 2
        for index in range(1, self.depth + 1):
            for part in (f"conv{index}", f"bn{index}", f"act{index}"):
                setattr(self, part, twin(getattr(block, part)))
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
        return x


class Inverted(nnx.Module):
    """A block of an EfficientNet or MobileNet, with a skip connection if the shapes match.

    Each convolution is followed by batch norm; channel attention comes before the last of several convolutions.

    Args:
        block: the timm block.
        twin: converts a submodule to its twin.
        order: names of the convolutions.
    """

    def __init__(self, block: Any, twin: Twin, order: tuple[str, ...]):
        self.order = order
        for index, name in enumerate(order, 1):
            setattr(self, name, twin(getattr(block, name)))
            setattr(self, f"bn{index}", twin(getattr(block, f"bn{index}")))
        self.se = twin(block.se) if len(order) > 1 else None
        self.has_skip = block.has_skip

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the block: (N, H, W, C) -> (N, h, w, out)."""
        shortcut = x
        for index, name in enumerate(self.order, 1):
            if self.se is not None and index == len(self.order):
                x = self.se(x, train)
            x = getattr(self, f"bn{index}")(getattr(self, name)(x), train)
        return x + shortcut if self.has_skip else x


class FeatureNet(nnx.Module):
    """Counterpart of a timm feature network, which applies layers in order and returns the outputs of some of them.

    Args:
        net: the source of the timm feature network.
        twin: converts a submodule to its twin.
    """

    def __init__(self, net: Any, twin: Twin):
        self.levels = tuple(info["module"] for info in net.feature_info.get_dicts())
        parts = net.parts()
        self.parts = tuple(parts)
        for name, part in parts.items():
            setattr(self, name, twin(part))

    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        """Return the selected feature maps of normalised images (N, H, W, 3)."""
        found: dict[str, Array] = {}
        for name in self.parts:
            layer = getattr(self, name)
            # A ResNet's stages are children of the network, those of the others are children of its `blocks`.
            stages = {f"blocks.{i}": stage for i, stage in enumerate(layer)} if name == "blocks" else {name: layer}
            for key, stage in stages.items():
                found[key] = x = stage(x, train)
        return [found[level] for level in self.levels]


class Backbone(nnx.Module):
    """Counterpart of ``models.backbone.TimmBackbone``."""

    def __init__(self, backbone: TimmBackbone, twin: Twin):
        self.net = twin(backbone.net)
        self.output_stride = backbone.output_stride

    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        """Return the selected feature maps of normalised images (N, H, W, 3)."""
        return self.net(x, train)
