"""The conversion rules for layers of torch and timm: convolutions, norms, activations, pooling and containers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from flax import nnx
from timm.layers import activations
from timm.layers.blur_pool import BlurPool2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.grn import GlobalResponseNorm as GlobalResponseNorm2d
from timm.layers.layer_scale import LayerScale2d
from timm.layers.mixed_conv2d import MixedConv2d
from timm.layers.norm import LayerNorm, LayerNorm2d
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.pool2d_same import AvgPool2dSame
from timm.models import _efficientnet_blocks as efficientnet

from ...backbone import DilatedConv2d
from ..channel_attention import ChannelConvolution
from ..layers import Activation, BatchNorm, Conv, Layers, Twin
from ..resampling import Pool
from ..timm_layers import BlurPool, GlobalResponseNorm, LayerScale, Linear, MixedConv
from ..timm_layers import LayerNorm as LayerNormTwin
from .rules import Rule, Source


def leaf(make: Callable[[Any], nnx.Module]) -> Callable[[Any, Twin], nnx.Module]:
    """Wrap the constructor of a twin that has no submodules."""
    return lambda source, twin: make(source)


def layers(source: Source, twin: Twin) -> Layers:
    """Return the twin of a container, which applies its submodules in order."""
    return Layers([twin(part) for part in source.parts().values()])


def _activation(name: str, *settings: str) -> Rule:
    """Return the rule for an activation whose attributes ``settings`` become arguments of ``jax.nn``'s function."""

    def make(source: Any, twin: Twin) -> Activation:
        return Activation(name, *(getattr(source, setting) for setting in settings))

    return Rule(make, unused=("inplace",))


def _gelu(source: Any) -> Activation:
    return Activation("gelu", source.approximate == "tanh")


def _relu6(source: Any) -> Activation:
    return Activation("relu6")


def _identity(source: Any) -> Layers:
    return Layers([])


def _batch_norm_act(source: Any, twin: Twin) -> BatchNorm:
    return BatchNorm(source, twin(source.act))


def _max_pool(source: Any) -> Pool:
    return Pool("max", source.kernel_size, source.stride, source.padding)


def _average_pool(source: Any) -> Pool:
    return Pool("average" if source.ceil_mode else "valid", source.kernel_size, source.stride)


def _average_pool_same(source: Any) -> Pool:
    return Pool("same", source.kernel_size, source.stride)


def _mixed_conv(source: Source, twin: Twin) -> MixedConv:
    return MixedConv([twin(part) for part in source.parts().values()], source.splits)


def _conv(make: Callable[[Any], nnx.Module]) -> Rule:
    return Rule(
        leaf(make),
        fixed={"padding_mode": "zeros", "output_padding": (0, 0)},
        unused=("in_channels", "out_channels", "kernel_size", "_reversed_padding_repeated_twice", "padding"),
    )


def _norm(make: Callable[[Any, Twin], nnx.Module]) -> Rule:
    return Rule(make, fixed={"affine": True, "track_running_stats": True}, unused=("num_features",))


_LAYER_SCALE = Rule(leaf(LayerScale), unused=("inplace", "init_values"))
LAYERS: dict[type[torch.nn.Module], Rule] = {
    torch.nn.Conv2d: _conv(Conv),
    DilatedConv2d: _conv(Conv),
    Conv2dSame: _conv(partial(Conv, same=True)),
    MixedConv2d: Rule(_mixed_conv, unused=("in_channels", "out_channels")),
    torch.nn.Conv1d: Rule(
        leaf(ChannelConvolution),
        fixed={"in_channels": 1, "out_channels": 1, "stride": (1,), "dilation": (1,), "padding_mode": "zeros"}
        | {"output_padding": (0,), "groups": 1},
        unused=("kernel_size", "padding", "_reversed_padding_repeated_twice"),
    ),
    torch.nn.Linear: Rule(leaf(Linear), unused=("in_features", "out_features")),
    torch.nn.BatchNorm2d: _norm(leaf(BatchNorm)),
    BatchNormAct2d: _norm(_batch_norm_act),
    LayerNorm: Rule(leaf(LayerNormTwin), {"elementwise_affine": True}, ("normalized_shape",)),
    LayerNorm2d: Rule(leaf(LayerNormTwin), {"elementwise_affine": True}, ("normalized_shape",)),
    GlobalResponseNorm2d: Rule(leaf(GlobalResponseNorm), unused=("spatial_dim", "channel_dim", "wb_shape")),
    LayerScale2d: _LAYER_SCALE,
    efficientnet.LayerScale2d: _LAYER_SCALE,  # its own before timm 1.0.21
    torch.nn.ReLU: _activation("relu"),
    torch.nn.ReLU6: Rule(leaf(_relu6), {"min_val": 0.0, "max_val": 6.0}, ("inplace",)),
    torch.nn.LeakyReLU: _activation("leaky_relu", "negative_slope"),
    torch.nn.SiLU: _activation("silu"),
    torch.nn.Mish: _activation("mish"),
    torch.nn.GELU: Rule(leaf(_gelu)),
    torch.nn.Sigmoid: _activation("sigmoid"),
    torch.nn.Hardswish: _activation("hard_swish"),
    torch.nn.Hardsigmoid: _activation("hard_sigmoid"),
    activations.Sigmoid: _activation("sigmoid"),
    activations.GELU: Rule(leaf(lambda _: Activation("gelu", False)), unused=("inplace",)),
    activations.GELUTanh: Rule(leaf(lambda _: Activation("gelu", True)), unused=("inplace",)),
    torch.nn.Identity: Rule(leaf(_identity)),
    torch.nn.Dropout: Rule(leaf(_identity), {"p": 0.0}, ("inplace",)),
    torch.nn.MaxPool2d: Rule(leaf(_max_pool), fixed={"dilation": 1}),
    torch.nn.AvgPool2d: Rule(leaf(_average_pool), fixed={"padding": 0}, unused=("count_include_pad",)),
    AvgPool2dSame: Rule(
        leaf(_average_pool_same),
        fixed={"padding": (0, 0)},
        unused=("count_include_pad", "ceil_mode"),
    ),
    BlurPool2d: Rule(leaf(BlurPool), fixed={"pad_mode": "reflect"}, unused=("channels", "filt", "filt_size")),
    torch.nn.Sequential: Rule(layers),
    torch.nn.ModuleList: Rule(layers),
}
