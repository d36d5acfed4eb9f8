"""Flax NNX twins of timm's ResNets and MobileNetV2s, built from timm's modules: any width, depth, stem and stride."""

from typing import Any

from flax import nnx
from jax import Array

from ..backbone import TimmBackbone
from .layers import Twin


class Residual(nnx.Module):
    """A basic or bottleneck block of a ResNet: convolutions, each followed by batch norm and ReLU.

    Args:
        block: the timm block.
        twin: converts a submodule to its twin.
    """

    def __init__(self, block: Any, twin: Twin):
        self.depth = 3 if hasattr(block, "conv3") else 2
        for index in range(1, self.depth + 1):
            for part in (f"conv{index}", f"bn{index}", f"act{index}"):
                setattr(self, part, twin(getattr(block, part)))
        self.downsample = None if block.downsample is None else twin(block.downsample)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the block: (N, H, W, C) -> (N, h, w, out)."""
        shortcut = x if self.downsample is None else self.downsample(x, train)
        for index in range(1, self.depth + 1):
            x = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x), train)
            if index == self.depth:
                x = x + shortcut
            x = getattr(self, f"act{index}")(x)
        return x


class Inverted(nnx.Module):
    """A MobileNetV2 block: 1x1, depthwise 3x3 and 1x1 convolutions, with a skip connection if the shapes match.

    Args:
        block: the timm block; the network's first block has no expansion, only a depthwise and a 1x1 convolution.
        twin: converts a submodule to its twin.
    """

    def __init__(self, block: Any, twin: Twin):
        self.order = ("conv_pw", "conv_dw", "conv_pwl") if hasattr(block, "conv_pwl") else ("conv_dw", "conv_pw")
        for index, name in enumerate(self.order, 1):
            setattr(self, name, twin(getattr(block, name)))
            setattr(self, f"bn{index}", twin(getattr(block, f"bn{index}")))
        self.has_skip = block.has_skip

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the block: (N, H, W, C) -> (N, h, w, out)."""
        shortcut = x
        for index, name in enumerate(self.order, 1):
            x = getattr(self, f"bn{index}")(getattr(self, name)(x), train)
        return x + shortcut if self.has_skip else x


class FeatureNet(nnx.Module):
    """Counterpart of a timm feature network, which applies layers in order and returns the outputs of some of them.

    Args:
        net: the timm feature network.
        twin: converts a submodule to its twin.
    """

    def __init__(self, net: Any, twin: Twin):
        self.levels = tuple(info["module"] for info in net.feature_info.get_dicts())
        self.parts = tuple(name for name, _ in net.named_children())
        for name, part in net.named_children():
            setattr(self, name, twin(part))

    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        """Return the selected feature maps of normalised images (N, H, W, 3)."""
        found: dict[str, Array] = {}
        for name in self.parts:
            layer = getattr(self, name)
            # A ResNet's stages are children of the network, a MobileNetV2's are children of its `blocks`.
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
