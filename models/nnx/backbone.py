"""Twins of timm's ResNets and MobileNetV2s: built from timm's own modules, so of any width, depth, stem and stride."""

from flax import nnx
from jax import Array


class Residual(nnx.Module):
    """A residual block of ResNet, basic or bottleneck: convolutions with batch norms, ReLU behind each.

    Args:
        block: timm's.
        twin: makes the twin of a part.
    """

    def __init__(self, block, twin):
        self.depth = 3 if hasattr(block, "conv3") else 2
        for index in range(1, self.depth + 1):
            for part in (f"conv{index}", f"bn{index}", f"act{index}"):
                setattr(self, part, twin(getattr(block, part)))
        self.downsample = None if block.downsample is None else twin(block.downsample)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """(N, H, W, C) -> (N, h, w, out)."""
        shortcut = x if self.downsample is None else self.downsample(x, train)
        for index in range(1, self.depth + 1):
            x = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x), train)
            if index == self.depth:
                x = x + shortcut
            x = getattr(self, f"act{index}")(x)
        return x


class Inverted(nnx.Module):
    """A block of MobileNetV2: 1x1, depthwise 3x3 and 1x1 convolution, and the input where the sizes agree.

    Args:
        block: timm's; its first block, without expansion, is a depthwise and a 1x1 convolution.
        twin: makes the twin of a part.
    """

    def __init__(self, block, twin):
        self.order = ("conv_pw", "conv_dw", "conv_pwl") if hasattr(block, "conv_pwl") else ("conv_dw", "conv_pw")
        for index, name in enumerate(self.order, 1):
            setattr(self, name, twin(getattr(block, name)))
            setattr(self, f"bn{index}", twin(getattr(block, f"bn{index}")))
        self.has_skip = block.has_skip

    def __call__(self, x: Array, train: bool = False) -> Array:
        """(N, H, W, C) -> (N, h, w, out)."""
        shortcut = x
        for index, name in enumerate(self.order, 1):
            x = getattr(self, f"bn{index}")(getattr(self, name)(x), train)
        return x + shortcut if self.has_skip else x


class FeatureNet(nnx.Module):
    """timm's feature network: layers in order, some of whose outputs are returned.

    Args:
        net: timm's.
        twin: makes the twin of a part.
    """

    def __init__(self, net, twin):
        self.levels = tuple(info["module"] for info in net.feature_info.get_dicts())
        self.parts = tuple(name for name, _ in net.named_children())
        for name, part in net.named_children():
            setattr(self, name, twin(part))

    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        """(N, H, W, 3), normalised -> the chosen levels."""
        found = {}
        for name in self.parts:
            layer = getattr(self, name)
            # A ResNet's stages are children of their own, a MobileNetV2's are together in one.
            stages = {f"blocks.{i}": stage for i, stage in enumerate(layer)} if name == "blocks" else {name: layer}
            for key, stage in stages.items():
                found[key] = x = stage(x, train)
        return [found[level] for level in self.levels]


class Backbone(nnx.Module):
    """``models.backbone.TimmBackbone``."""

    def __init__(self, backbone, twin):
        self.net = twin(backbone.net)
        self.output_stride = backbone.output_stride

    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        """(N, H, W, 3), normalised -> the chosen levels."""
        return self.net(x, train)
