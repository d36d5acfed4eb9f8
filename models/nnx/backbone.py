"""Flax NNX twins of timm's feature networks."""

from typing import Any

from flax import nnx
from jax import Array

from ..backbone import TimmBackbone
from .layers import Twin


class FeatureNet(nnx.Module):
    """Counterpart of a timm feature network, which applies layers in order and returns the outputs of some of them.

    Args:
        net: the source of the timm feature network.
        twin: converts a submodule to its twin.
    """

    def __init__(self, net: Any, twin: Twin):
        # timm may hold the module "stages.0" as "stages_0".
        self.levels = tuple(info["module"].replace(".", "_") for info in net.feature_info.get_dicts())
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
            stages = {f"blocks_{i}": stage for i, stage in enumerate(layer)} if name == "blocks" else {name: layer}
            for key, stage in stages.items():
                found[key] = x = stage(x, train)
        return [found[level] for level in self.levels]


class Backbone(nnx.Module):
    """Counterpart of ``models.backbone.TimmBackbone``.

    Attributes:
        deterministic: whether a call without ``train`` is in evaluation mode, as it is at first. Flax's ``train()`` and
            ``eval()`` set it.
    """

    def __init__(self, backbone: TimmBackbone, twin: Twin):
        self.net = twin(backbone.net)
        self.output_stride = backbone.output_stride
        self.deterministic = True

    def __call__(self, x: Array, train: bool | None = None) -> list[Array]:
        """Return the selected feature maps of normalised images (N, H, W, 3)."""
        return self.net(x, not self.deterministic if train is None else train)
