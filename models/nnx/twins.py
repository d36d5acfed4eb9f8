"""Conversion of torch modules to their Flax NNX twins, and of the weights back to torch."""

# Flax states are only partially typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flax import nnx
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.pool2d_same import AvgPool2dSame
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from timm.models._features import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor

from ..backbone import TimmBackbone
from ..context.global_convolution import GlobalConvolution
from ..context.horizontal_vertical import HorizontalVertical, ParallelHorizontalVertical
from ..context.non_local import NonLocal
from ..context.pyramid import AtrousPyramid, PyramidPooling
from ..criss_cross import CrissCrossAttention
from ..heads.context import ContextHead
from ..heads.fcn import FCNHead
from ..segmentor import Segmentor
from . import backbone as backbone_twins
from . import context as context_twins
from . import segmentor as segmentor_twins
from .layers import Activation, BatchNorm, Conv, Layers, Pool, to_torch


def twin(module: torch.nn.Module) -> nnx.Module:
    """Return the channels-last Flax NNX twin of a torch module, with its settings and a copy of its weights.

    Raises:
        ValueError: the module or one of its submodules has no twin.
    """
    make = _TWINS.get(type(module))
    if make is not None:
        return make(module)
    raise ValueError(
        f"{type(module).__module__}.{type(module).__name__} has no JAX counterpart: JAX supports timm's ResNets "
        "(plain, c, d, s and t stems) and MobileNetV2s, and this project's semantic segmentation networks"
    )


def state_dict(network: nnx.Module) -> dict[str, Tensor]:
    """Return the weights with torch's names and layout, for ``load_state_dict`` of the torch network."""
    weights: dict[str, Tensor] = {}
    for path, variable in nnx.to_flat_state(nnx.state(network)):
        if isinstance(variable, nnx.Param):
            tensor = to_torch(variable[...])
        else:
            tensor = torch.from_numpy(np.array(variable[...]))
        weights[".".join(map(str, path))] = tensor.long() if path[-1] == "num_batches_tracked" else tensor
    return weights


def _with_parts(make: Callable[..., nnx.Module]) -> Callable[[Any], nnx.Module]:
    """Wrap the constructor of a twin that converts its submodules with :func:`twin`."""
    return lambda module: make(module, twin)


def _activation(module: torch.nn.Module) -> Activation:
    return Activation(6.0 if isinstance(module, torch.nn.ReLU6) else None)


def _max_pool(module: Any) -> Pool:
    return Pool("max", module.kernel_size, module.stride, module.padding)


_TWINS: dict[type[torch.nn.Module], Callable[[Any], nnx.Module]] = {
    torch.nn.Conv2d: Conv,
    torch.nn.BatchNorm2d: BatchNorm,
    BatchNormAct2d: BatchNorm,
    torch.nn.ReLU: _activation,
    torch.nn.ReLU6: _activation,
    torch.nn.LeakyReLU: lambda module: Activation(slope=module.negative_slope),
    torch.nn.Identity: lambda module: Layers([]),
    torch.nn.MaxPool2d: _max_pool,
    torch.nn.AvgPool2d: lambda module: Pool("average", module.kernel_size, module.stride),
    AvgPool2dSame: lambda module: Pool("same", module.kernel_size[0], module.stride[0]),
    torch.nn.Sequential: lambda module: Layers([twin(part) for part in module]),
    torch.nn.ModuleList: lambda module: Layers([twin(part) for part in module]),
    HorizontalVertical: lambda module: Layers([twin(part) for part in module]),
    BasicBlock: _with_parts(backbone_twins.Residual),
    Bottleneck: _with_parts(backbone_twins.Residual),
    InvertedResidual: _with_parts(backbone_twins.Inverted),
    DepthwiseSeparableConv: _with_parts(backbone_twins.Inverted),
    FeatureListNet: _with_parts(backbone_twins.FeatureNet),
    EfficientNetFeatures: _with_parts(backbone_twins.FeatureNet),
    TimmBackbone: _with_parts(backbone_twins.Backbone),
    CrissCrossAttention: _with_parts(context_twins.CrissCrossAttention),
    ParallelHorizontalVertical: _with_parts(context_twins.ParallelHorizontalVertical),
    NonLocal: _with_parts(context_twins.NonLocal),
    PyramidPooling: _with_parts(context_twins.PyramidPooling),
    AtrousPyramid: _with_parts(context_twins.AtrousPyramid),
    GlobalConvolution: _with_parts(context_twins.GlobalConvolution),
    ContextHead: _with_parts(segmentor_twins.ContextHead),
    FCNHead: _with_parts(segmentor_twins.FCNHead),
    Segmentor: _with_parts(segmentor_twins.Segmentor),
}
