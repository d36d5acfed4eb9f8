"""Flax NNX twins of timm's feature networks."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx
from jax import Array

from ...kernels.jax_ops.promotion import usual_promotion
from .layers import Modal, Twin


class FeatureNet(nnx.Module):
    """Counterpart of a timm feature network: applies layers in order and returns the outputs of some of them.

    Args:
        parts: the twins of the layers in order, keyed by timm's names.
        levels: names of the layers whose outputs are returned; "blocks.0" is the first stage of "blocks".
    """

    def __init__(self, parts: Mapping[str, nnx.Module], levels: Sequence[str]):
        self.levels = tuple(level.replace(".", "_") for level in levels)  # timm may name "stages.0" "stages_0"
        self.parts = tuple(parts)
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        """Return the selected feature maps of normalised images (N, H, W, C)."""
        features: dict[str, Array] = {}
        for name in self.parts:
            layer = getattr(self, name)
            # The stages are children of the network in a ResNet, and children of its `blocks` in an EfficientNet.
            stages = {f"blocks_{i}": stage for i, stage in enumerate(layer)} if name == "blocks" else {name: layer}
            for key, stage in stages.items():
                features[key] = x = stage(x, train)
        return [features[level] for level in self.levels]


class Backbone(Modal):
    """Counterpart of ``ccnet.models.backbone.TimmBackbone``."""

    def __init__(self, backbone: Any, twin: Twin):
        super().__init__()
        self.net = twin(backbone.net)
        self.output_stride = backbone.output_stride

    @usual_promotion()
    def __call__(self, x: Array, train: bool | None = None) -> list[Array]:
        """Return the selected feature maps of normalised images (N, H, W, C)."""
        return self.net(x, self.trains(train))
