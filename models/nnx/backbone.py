"""Flax NNX twins of timm's feature networks."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx
from jax import Array

from .layers import Twin


class FeatureNet(nnx.Module):
    """Counterpart of a timm feature network, which applies layers in order and returns the outputs of some of them.

    Args:
        parts: the twins of the layers by timm's names, in order.
        levels: names of the layers whose outputs are returned; "blocks.0" is the first stage of "blocks".
    """

    def __init__(self, parts: Mapping[str, nnx.Module], levels: Sequence[str]):
        self.levels = tuple(level.replace(".", "_") for level in levels)  # timm may hold "stages.0" as "stages_0"
        self.parts = tuple(parts)
        for name, part in parts.items():
            setattr(self, name, part)

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

    def __init__(self, backbone: Any, twin: Twin):
        self.net = twin(backbone.net)
        self.output_stride = backbone.output_stride
        self.deterministic = True

    def __call__(self, x: Array, train: bool | None = None) -> list[Array]:
        """Return the selected feature maps of normalised images (N, H, W, 3)."""
        return self.net(x, not self.deterministic if train is None else train)
