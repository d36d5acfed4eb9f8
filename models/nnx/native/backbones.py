"""ResNets and MobileNetV2s built from a timm model name and a weight file, without timm.

Depth, widths, stems, groups and channel attention are inferred from the names and shapes of the tensors. Strides and
dilations are computed as in timm's ``make_blocks`` (ResNet) and ``EfficientNetBuilder`` (MobileNetV2).
"""

import re
from collections.abc import Sequence
from typing import Any

from ..backbone import Backbone, FeatureNet
from ..blocks import MobileNetBlock, ResNetBlock
from ..channel_attention import ChannelConvolution, EfficientChannelAttention, SqueezeExcite
from ..layers import Twin
from .parts import Part, Weights, activation, batch_norm, conv, pool, sequence

_RESNETS = re.compile(r"(wide_|se|eca)?res(net|next)\d+[cdst]?(_\d+(x\d+d)?)?")
_MOBILENETS = re.compile(r"mobilenetv2_\d+d?")
_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # strides of the stages of a MobileNetV2


def backbone(weights: Weights, name: str, output_stride: int, out_indices: Sequence[int]) -> Part:
    """Describe ``ccnet.models.backbone.TimmBackbone``.

    Args:
        weights: the tensors of the backbone.
        name: name of the timm model.
        output_stride: ratio of the input size to the size of the last feature map.
        out_indices: timm's feature levels to return.

    Raises:
        ValueError: the model is neither a ResNet nor a MobileNetV2, or the tensors are not those of the model.
    """
    base = name.partition(".")[0]  # without timm's tag of the pretrained weights
    if _RESNETS.fullmatch(base):
        net = _resnet(weights.at("net"), base, output_stride, out_indices)
    elif _MOBILENETS.fullmatch(base):
        net = _mobilenet(weights.at("net"), output_stride, out_indices)
    else:
        raise ValueError(
            f"the backbone {name!r} cannot be built without timm, only ResNets and MobileNetV2s: convert the torch "
            "network with ccnet.models.nnx.twin"
        )
    return Part(Backbone, net=net, output_stride=output_stride)


def _net(parts: dict[str, Part], levels: Sequence[str]) -> Part:
    def make(part: Any, twin: Twin) -> FeatureNet:
        return FeatureNet({name: twin(layer) for name, layer in part.layers.items()}, levels)

    return Part(make, layers=parts)


def _chosen(levels: Sequence[str], indices: Sequence[int]) -> list[str]:
    if not all(-len(levels) <= index < len(levels) for index in indices):
        raise ValueError(f"out_indices={list(indices)}, but the backbone has only the levels {', '.join(levels)}")
    return [levels[index] for index in indices]


# ---- ResNet


def _resnet(weights: Weights, name: str, output_stride: int, out_indices: Sequence[int]) -> Part:
    names = ["act1", "layer1", "layer2", "layer3", "layer4"]
    levels = _chosen(names, out_indices)
    stem = weights.at("conv1")
    if stem.has("weight"):
        first = last = conv(stem, stride=2)
    else:  # three 3x3 convolutions, the first two followed by batch norm and ReLU
        relu = activation("relu")
        conv1, conv2, last = conv(stem.at(0), stride=2), conv(stem.at(3)), conv(stem.at(6))
        first = sequence([conv1, batch_norm(stem.at(1), conv1), relu, conv2, batch_norm(stem.at(4), conv2), relu, last])
    parts = {"conv1": first, "bn1": batch_norm(weights.at("bn1"), last), "act1": activation("relu")}
    parts["maxpool"] = pool("max", 3, 2, 1)
    net_stride, dilation, before, layers = 4, 1, 1, 2
    for stage in range(1, max(map(names.index, levels)) + 1):  # later stages are not built
        stride = 1 if stage == 1 else 2
        if net_stride >= output_stride:
            dilation, stride = dilation * stride, 1
        net_stride *= stride
        own = weights.at(f"layer{stage}")
        blocks = [
            _residual(own.at(i), stride if i == 0 else 1, dilation, before if i == 0 else dilation)
            for i in range(max(own.count(), 1))
        ]
        parts[f"layer{stage}"] = sequence(blocks)
        before = dilation
        layers += len(blocks) * (3 if own.at(0).has("conv3") else 2)
    expected = re.search(r"res(?:net|next)(\d+)", name)
    if "layer4" in parts and expected and layers != int(expected[1]):
        raise ValueError(f"the weight file contains a ResNet of {layers} layers, not a {name}")
    return _net(parts, levels)


def _residual(weights: Weights, stride: int, dilation: int, first_dilation: int) -> Part:
    """Describe a block; ``first_dilation`` is the dilation of its first 3x3 convolution."""
    width = weights.at("conv1")["weight"].shape[0]
    if weights.has("conv3"):
        second = conv(weights.at("conv2"), stride=stride, dilation=first_dilation, channels=width)
        convs = [conv(weights.at("conv1")), second, conv(weights.at("conv3"))]
    else:
        first = conv(weights.at("conv1"), stride=stride, dilation=first_dilation)
        convs = [first, conv(weights.at("conv2"), dilation=dilation)]
    layers: dict[str, Part] = {}
    for index, layer in enumerate(convs, 1):
        layers |= {f"conv{index}": layer, f"bn{index}": batch_norm(weights.at(f"bn{index}"), layer)}
        layers[f"act{index}"] = activation("relu")
    downsample = _downsample(weights.at("downsample"), stride, dilation) if weights.has("downsample") else None
    attention = _attention(weights.at("se")) if weights.has("se") else None
    return Part(ResNetBlock, **layers, aa=sequence([]), se=attention, downsample=downsample)


def _downsample(weights: Weights, stride: int, dilation: int) -> Part:
    if weights.has("0"):
        first = conv(weights.at(0), stride=stride)
        return sequence([first, batch_norm(weights.at(1), first)])
    step = stride if dilation == 1 else 1
    kind = "same" if step == 1 and dilation > 1 else "average"
    averaged = sequence([]) if stride == 1 and dilation == 1 else pool(kind, 2, step)
    second = conv(weights.at(1))
    return sequence([averaged, second, batch_norm(weights.at(2), second)])


def _attention(weights: Weights) -> Part:
    gate = activation("sigmoid")
    if weights.has("conv"):
        taps = Part(lambda part, _: ChannelConvolution(part), weight=weights.at("conv")["weight"])
        return Part(EfficientChannelAttention, conv=taps, gate=gate)
    names = ("fc1", "act", "fc2", "gate")
    first, second = (conv(weights.at(name), bias=True) for name in ("fc1", "fc2"))
    layers = {"fc1": first, "act": activation("relu"), "fc2": second}
    return Part(lambda part, twin: SqueezeExcite(part, twin, names), **layers, gate=gate)


# ---- MobileNetV2


def _mobilenet(weights: Weights, output_stride: int, out_indices: Sequence[int]) -> Part:
    stem = conv(weights.at("conv_stem"), stride=2)
    parts = {"conv_stem": stem, "bn1": batch_norm(weights.at("bn1"), stem, "relu6")}
    stages: list[Part] = []
    levels: list[str] = []
    net_stride, dilation = 2, 1
    for stage, stride in enumerate(_STRIDES):
        own, following = weights.at("blocks").at(stage), dilation
        if net_stride * stride > output_stride:
            stride, following = 1, dilation * stride
        net_stride *= stride
        # A stride that is converted to dilation takes effect only after the block that had the stride.
        blocks = [_inverted(own.at(0), stride, dilation)]
        blocks += [_inverted(own.at(index), 1, following) for index in range(1, own.count())]
        dilation = following
        stages.append(sequence(blocks))
        if stage + 1 == len(_STRIDES) or _STRIDES[stage + 1] > 1:
            levels.append(f"blocks.{stage}")
    return _net(parts | {"blocks": sequence(stages)}, _chosen(levels, out_indices))


def _inverted(weights: Weights, stride: int, dilation: int) -> Part:
    order = ("conv_pw", "conv_dw", "conv_pwl") if weights.has("conv_pwl") else ("conv_dw", "conv_pw")
    kernels = [weights.at(name)["weight"] for name in order]
    depthwise = len(weights.at("conv_dw")["weight"])
    layers: dict[str, Part] = {}
    for index, name in enumerate(order, 1):
        own, last = weights.at(name), index == len(order)
        spaced = name == "conv_dw"
        layers[name] = conv(own, stride=stride, dilation=dilation, channels=depthwise) if spaced else conv(own)
        layers[f"bn{index}"] = batch_norm(weights.at(f"bn{index}"), layers[name], None if last else "relu6")
    has_skip = stride == 1 and len(kernels[-1]) == (depthwise if order[0] == "conv_dw" else kernels[0].shape[1])
    identity = sequence([])
    return Part(
        lambda part, twin: MobileNetBlock(part, twin, order), **layers, aa=identity, se=identity, has_skip=has_skip
    )
