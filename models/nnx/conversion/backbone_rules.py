"""The conversion rules for timm's backbones and their blocks."""

from collections.abc import Callable
from typing import Any

import torch
from flax import nnx
from timm.layers.conv_bn_act import ConvNormAct
from timm.layers.eca import EcaModule
from timm.layers.mlp import GlobalResponseNormMlp, Mlp
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule
from timm.models import _efficientnet_blocks as efficientnet
from timm.models import convnext, regnet, resnet
from timm.models._features import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features

from ...backbone import TimmBackbone
from ..backbone import Backbone, FeatureNet
from ..blocks import ConvNeXtBlock, MobileNetBlock, MobileNetV4Block, RegNetBlock, ResNetBlock
from ..channel_attention import EfficientChannelAttention, SqueezeExcite
from ..layers import NamedLayers, Twin
from .rules import Rule, Source


def with_parts(make: Callable[..., nnx.Module], *arguments: Any) -> Callable[[Any, Twin], nnx.Module]:
    """Bind ``arguments`` to the constructor of a twin, called as make(source, twin, *arguments)."""
    return lambda source, twin: make(source, twin, *arguments)


def _conv_norm_act(source: Any, twin: Twin) -> NamedLayers:
    return NamedLayers(source, twin, ("conv", "bn") if source.aa is None else ("conv", "bn", "aa"))


def _layers_by_name(source: Source, twin: Twin) -> NamedLayers:
    return NamedLayers(source, twin, tuple(source.parts()))


def _feature_net(source: Any, twin: Twin) -> FeatureNet:
    levels = [info["module"] for info in source.feature_info.get_dicts()]
    return FeatureNet({name: twin(part) for name, part in source.parts().items()}, levels)


_BLOCK = ("stride", "dilation", "has_pw_act")  # redundant: their submodules have these settings too
_NET = (
    *("return_layers", "in_chans", "drop_rate", "grad_checkpointing", "_stage_out_idx"),
    *("pretrained_cfg", "default_cfg", "_traits", "_model_args", "pretrained_model_args"),
)

BACKBONES: dict[type[torch.nn.Module], Rule] = {
    ConvNormAct: Rule(_conv_norm_act),
    resnet.BasicBlock: Rule(with_parts(ResNetBlock), unused=_BLOCK),
    resnet.Bottleneck: Rule(with_parts(ResNetBlock), unused=_BLOCK),
    regnet.Bottleneck: Rule(with_parts(RegNetBlock)),
    regnet.RegStage: Rule(_layers_by_name),
    convnext.ConvNeXtBlock: Rule(with_parts(ConvNeXtBlock), unused=("use_conv_mlp",)),
    convnext.ConvNeXtStage: Rule(with_parts(NamedLayers, ("downsample", "blocks"))),
    convnext.Downsample: Rule(with_parts(NamedLayers, ("pool", "conv"))),
    Mlp: Rule(with_parts(NamedLayers, ("fc1", "act", "drop1", "norm", "fc2", "drop2"))),
    GlobalResponseNormMlp: Rule(with_parts(NamedLayers, ("fc1", "act", "drop1", "grn", "fc2", "drop2"))),
    efficientnet.ConvBnAct: Rule(with_parts(MobileNetBlock, ("conv",))),
    efficientnet.EdgeResidual: Rule(with_parts(MobileNetBlock, ("conv_exp", "conv_pwl"))),
    efficientnet.DepthwiseSeparableConv: Rule(with_parts(MobileNetBlock, ("conv_dw", "conv_pw")), unused=_BLOCK),
    efficientnet.InvertedResidual: Rule(with_parts(MobileNetBlock, ("conv_pw", "conv_dw", "conv_pwl"))),
    efficientnet.UniversalInvertedResidual: Rule(with_parts(MobileNetV4Block)),
    efficientnet.SqueezeExcite: Rule(with_parts(SqueezeExcite, ("conv_reduce", "act1", "conv_expand", "gate"))),
    SEModule: Rule(with_parts(SqueezeExcite, ("fc1", "bn", "act", "fc2", "gate"))),
    EffectiveSEModule: Rule(with_parts(SqueezeExcite, ("fc", "gate"))),
    EcaModule: Rule(with_parts(EfficientChannelAttention)),
    FeatureListNet: Rule(_feature_net, fixed={"output_fmt": "NCHW"}, unused=_NET),
    EfficientNetFeatures: Rule(_feature_net, unused=_NET),
    MobileNetV3Features: Rule(_feature_net, unused=_NET),
    TimmBackbone: Rule(with_parts(Backbone), unused=("channels", "mean", "std", "in_channels")),
}
