"""Conversion of torch modules to their Flax NNX twins, and of the weights back to torch."""

# Flax states are only partially typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from timm.layers import activations as timm_activations
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.eca import EcaModule
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.pool2d_same import AvgPool2dSame
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule
from timm.models import _efficientnet_blocks as blocks
from timm.models._features import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
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
from .channel_attention import ChannelConvolution, EfficientChannelAttention, SqueezeExcite
from .comparison import compare
from .layers import Activation, BatchNorm, Conv, Layers, Pool, to_torch
from .rules import Rule, Source, convert


def twin(module: torch.nn.Module) -> nnx.Module:
    """Return the channels-last Flax NNX twin of a torch module, with its settings and a copy of its weights.

    The twin of a backbone of a new architecture is first compared with timm's network; see :mod:`.comparison`.

    Raises:
        ValueError: the module or one of its submodules has no twin or a setting that its twin does not implement, or
            the twin of a backbone computes something else.
    """
    made = _twin(module)
    names, expected = set(_variables(made)), set(module.state_dict())
    if names != expected:
        differing = ", ".join(sorted(names ^ expected))
        raise ValueError(f"the weights of {type(module).__name__} and of its JAX twin differ in {differing}")
    for part in module.modules():
        if isinstance(part, TimmBackbone):
            compare(part, _twin)
    return made


def _twin(module: torch.nn.Module) -> nnx.Module:
    """Return the twin of a module without comparing their results."""
    rule = _RULES.get(type(module))
    if rule is not None:
        return convert(module, rule)
    raise ValueError(
        f"{type(module).__module__}.{type(module).__name__} has no JAX counterpart: JAX supports the backbones that "
        "docs/jax.md lists, such as timm's ResNets, EfficientNets and MobileNets, and this project's semantic "
        "segmentation networks"
    )


def state_dict(network: nnx.Module) -> dict[str, Tensor]:
    """Return the weights with torch's names and layout, for ``load_state_dict`` of the torch network."""
    weights: dict[str, Tensor] = {}
    for name, variable in _variables(network).items():
        tensor = to_torch(variable[...]) if isinstance(variable, nnx.Param) else _plain(variable[...])
        weights[name] = tensor.long() if name.endswith("num_batches_tracked") else tensor
    return weights


def _variables(network: nnx.Module) -> dict[str, Any]:
    """Return the network's variables by torch's names."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(network))}


def _plain(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))


# ---- the rules


def _with_parts(make: Callable[..., nnx.Module], *arguments: Any) -> Callable[[Any], nnx.Module]:
    """Wrap the constructor of a twin that converts its submodules."""
    return lambda source: make(source, _twin, *arguments)


def _layers(source: Source) -> Layers:
    return Layers([_twin(part) for part in source.parts().values()])


def _activation(function: Callable[..., Any], *settings: str) -> Rule:
    """Return the rule of an activation whose ``settings`` are the function's arguments."""

    def make(source: Any) -> Activation:
        return Activation(function, *(getattr(source, name) for name in settings))

    return Rule(make, unused=("inplace",))


def _gelu(source: Any) -> Activation:
    return Activation(jax.nn.gelu, source.approximate == "tanh")


def _batch_norm_act(source: Any) -> BatchNorm:
    return BatchNorm(source, _twin(source.act))


def _max_pool(source: Any) -> Pool:
    return Pool("max", source.kernel_size, source.stride, source.padding)


def _average_pool(source: Any, kind: str = "average") -> Pool:
    return Pool(kind, source.kernel_size, source.stride)


def _conv(make: Callable[[Any], nnx.Module]) -> Rule:
    return Rule(
        make,
        fixed={"padding_mode": "zeros", "output_padding": (0, 0)},
        unused=("in_channels", "out_channels", "kernel_size", "_reversed_padding_repeated_twice", "padding"),
    )


def _norm(make: Callable[[Any], nnx.Module]) -> Rule:
    return Rule(make, fixed={"affine": True, "track_running_stats": True}, unused=("num_features",))


def _relu6(source: Any) -> Activation:
    return Activation(jax.nn.relu6)


def _identity(source: Any) -> Layers:
    return Layers([])


_BLOCK = ("stride", "dilation", "has_pw_act")  # the convolutions and the batch norm record them too
_NET = (
    *("return_layers", "in_chans", "drop_rate", "grad_checkpointing", "_stage_out_idx"),
    *("pretrained_cfg", "default_cfg", "_traits", "_model_args", "pretrained_model_args"),
)

_LAYERS: dict[type[torch.nn.Module], Rule] = {
    torch.nn.Conv2d: _conv(Conv),
    Conv2dSame: _conv(partial(Conv, same=True)),
    torch.nn.Conv1d: Rule(
        ChannelConvolution,
        fixed={"in_channels": 1, "out_channels": 1, "stride": (1,), "dilation": (1,), "padding_mode": "zeros"}
        | {"output_padding": (0,), "groups": 1},
        unused=("kernel_size", "padding", "_reversed_padding_repeated_twice"),
    ),
    torch.nn.BatchNorm2d: _norm(BatchNorm),
    BatchNormAct2d: _norm(_batch_norm_act),
    torch.nn.ReLU: _activation(jax.nn.relu),
    torch.nn.ReLU6: Rule(_relu6, {"min_val": 0.0, "max_val": 6.0}, ("inplace",)),
    torch.nn.LeakyReLU: _activation(jax.nn.leaky_relu, "negative_slope"),
    torch.nn.SiLU: _activation(jax.nn.silu),
    torch.nn.Mish: _activation(jax.nn.mish),
    torch.nn.GELU: Rule(_gelu),
    torch.nn.Sigmoid: _activation(jax.nn.sigmoid),
    torch.nn.Hardswish: _activation(jax.nn.hard_swish),
    torch.nn.Hardsigmoid: _activation(jax.nn.hard_sigmoid),
    timm_activations.Sigmoid: _activation(jax.nn.sigmoid),
    timm_activations.GELU: _activation(partial(jax.nn.gelu, approximate=False)),
    timm_activations.GELUTanh: _activation(partial(jax.nn.gelu, approximate=True)),
    torch.nn.Identity: Rule(_identity),
    torch.nn.MaxPool2d: Rule(_max_pool, fixed={"dilation": 1}),
    torch.nn.AvgPool2d: Rule(_average_pool, fixed={"ceil_mode": True, "padding": 0}, unused=("count_include_pad",)),
    AvgPool2dSame: Rule(
        partial(_average_pool, kind="same"), fixed={"padding": (0, 0)}, unused=("count_include_pad", "ceil_mode")
    ),
    torch.nn.Sequential: Rule(_layers),
    torch.nn.ModuleList: Rule(_layers),
}

_BACKBONES: dict[type[torch.nn.Module], Rule] = {
    BasicBlock: Rule(_with_parts(backbone_twins.Residual), unused=_BLOCK),
    Bottleneck: Rule(_with_parts(backbone_twins.Residual), unused=_BLOCK),
    blocks.ConvBnAct: Rule(_with_parts(backbone_twins.Inverted, ("conv",))),
    blocks.EdgeResidual: Rule(_with_parts(backbone_twins.Inverted, ("conv_exp", "conv_pwl"))),
    blocks.DepthwiseSeparableConv: Rule(_with_parts(backbone_twins.Inverted, ("conv_dw", "conv_pw")), unused=_BLOCK),
    blocks.InvertedResidual: Rule(_with_parts(backbone_twins.Inverted, ("conv_pw", "conv_dw", "conv_pwl"))),
    SEModule: Rule(_with_parts(SqueezeExcite, ("fc1", "bn", "act", "fc2", "gate"))),
    EffectiveSEModule: Rule(_with_parts(SqueezeExcite, ("fc", "gate"))),
    blocks.SqueezeExcite: Rule(_with_parts(SqueezeExcite, ("conv_reduce", "act1", "conv_expand", "gate"))),
    EcaModule: Rule(_with_parts(EfficientChannelAttention)),
    FeatureListNet: Rule(_with_parts(backbone_twins.FeatureNet), fixed={"output_fmt": "NCHW"}, unused=_NET),
    EfficientNetFeatures: Rule(_with_parts(backbone_twins.FeatureNet), unused=_NET),
    MobileNetV3Features: Rule(_with_parts(backbone_twins.FeatureNet), unused=_NET),
    TimmBackbone: Rule(_with_parts(backbone_twins.Backbone), unused=("channels", "mean", "std", "in_channels")),
}

_NETWORKS: dict[type[torch.nn.Module], Rule] = {
    CrissCrossAttention: Rule(_with_parts(context_twins.CrissCrossAttention)),
    HorizontalVertical: Rule(_layers),
    ParallelHorizontalVertical: Rule(_with_parts(context_twins.ParallelHorizontalVertical)),
    NonLocal: Rule(_with_parts(context_twins.NonLocal)),
    PyramidPooling: Rule(_with_parts(context_twins.PyramidPooling)),
    AtrousPyramid: Rule(_with_parts(context_twins.AtrousPyramid)),
    GlobalConvolution: Rule(_with_parts(context_twins.GlobalConvolution)),
    ContextHead: Rule(_with_parts(segmentor_twins.ContextHead), unused=("context_channels",)),
    FCNHead: Rule(_with_parts(segmentor_twins.FCNHead)),
    Segmentor: Rule(_with_parts(segmentor_twins.Segmentor)),
}

_RULES = _LAYERS | _BACKBONES | _NETWORKS
