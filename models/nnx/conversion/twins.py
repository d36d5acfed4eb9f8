"""Conversion of torch modules to their Flax NNX twins, and of the weights back to torch."""

# Flax states are only partially typed.

from typing import Any

import torch
from flax import nnx
from torch import Tensor

from ...backbone import TimmBackbone
from ...context.global_convolution import GlobalConvolution
from ...context.horizontal_vertical import HorizontalVertical, ParallelHorizontalVertical
from ...context.non_local import NonLocal
from ...context.pyramid import AtrousPyramid, PyramidPooling
from ...criss_cross import CrissCrossAttention
from ...heads.context import ContextHead
from ...heads.fcn import FCNHead
from ...segmentor import Segmentor
from .. import context as context_twins
from .. import segmentor as segmentor_twins
from ..torch_arrays import statistic_to_torch, to_torch
from .backbone_rules import BACKBONES, with_parts
from .comparison import compare, largest_difference
from .layer_rules import LAYERS, layers
from .rules import Rule, convert

_NETWORKS: dict[type[torch.nn.Module], Rule] = {
    CrissCrossAttention: Rule(with_parts(context_twins.CrissCrossAttention)),
    HorizontalVertical: Rule(layers),
    ParallelHorizontalVertical: Rule(with_parts(context_twins.ParallelHorizontalVertical)),
    NonLocal: Rule(with_parts(context_twins.NonLocal)),
    PyramidPooling: Rule(with_parts(context_twins.PyramidPooling)),
    AtrousPyramid: Rule(with_parts(context_twins.AtrousPyramid)),
    GlobalConvolution: Rule(with_parts(context_twins.GlobalConvolution)),
    ContextHead: Rule(with_parts(segmentor_twins.ContextHead), unused=("context_channels", "context_takes_clips")),
    FCNHead: Rule(with_parts(segmentor_twins.FCNHead)),
    Segmentor: Rule(with_parts(segmentor_twins.Segmentor)),
}
_RULES = LAYERS | BACKBONES | _NETWORKS


def twin(module: torch.nn.Module) -> nnx.Module:
    """Return the channels-last Flax NNX twin of a torch module, with its settings and a copy of its weights.

    For each new backbone architecture, the twin is compared with timm's network; see :mod:`.comparison`.

    Raises:
        ValueError: the module or a submodule has no twin, or a setting that its twin does not implement, or the
            features of a backbone and of its twin differ.
    """
    network = _with_all_weights(module)
    for part in module.modules():
        if isinstance(part, TimmBackbone):
            compare(part, _twin)
    return network


def backbone_difference(backbone: TimmBackbone, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> float:
    """Return the largest difference between the features of a backbone and of its twin with random weights.

    Args:
        backbone: the torch backbone, which is left unchanged.
        size: height and width of the random images.
        dtype: float32 or float64.

    Returns:
        The difference relative to the largest value of each feature map.

    Raises:
        ValueError: the backbone has no twin.
    """
    _with_all_weights(backbone)  # fails before timm's network runs if there is no twin
    return largest_difference(backbone, _with_all_weights, size, dtype)


def _with_all_weights(module: torch.nn.Module) -> nnx.Module:
    """Return the twin of a module; raise ValueError if its weights have other names than the module's."""
    network = _twin(module)
    names, expected = set(_variables(network)), set(module.state_dict())
    if names != expected:
        differing = ", ".join(sorted(names ^ expected))
        raise ValueError(f"the weights of {type(module).__name__} and of its JAX twin differ in {differing}")
    return network


def _twin(module: torch.nn.Module) -> nnx.Module:
    """Return the twin of a module without comparing the two."""
    rule = _RULES.get(type(module))
    if rule is not None:
        return convert(module, rule, _twin)
    raise ValueError(
        f"{type(module).__module__}.{type(module).__name__} has no JAX counterpart: JAX supports the backbones that "
        "docs/jax.md lists, such as timm's ResNets, EfficientNets and ConvNeXts, and this project's semantic "
        "segmentation networks except CE2P"
    )


def state_dict(network: nnx.Module) -> dict[str, Tensor]:
    """Return a twin's weights with torch's names and layout, for the torch network's ``load_state_dict``."""
    weights: dict[str, Tensor] = {}
    for name, variable in _variables(network).items():
        convert_back = to_torch if isinstance(variable, nnx.Param) else statistic_to_torch
        tensor = convert_back(variable[...])
        weights[name] = tensor.long() if name.endswith("num_batches_tracked") else tensor
    return weights


def _variables(network: nnx.Module) -> dict[str, Any]:
    """Return the network's variables, keyed by torch's names."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(network))}
