"""mmsegmentation's layout: a ResNet with output stride 8, one of five heads, and an auxiliary FCN head.

Its criss-cross and non-local heads extend its FCN head, which corresponds to this project's context head without a
context module. Its PSPNet and DeepLabv3 heads are applied directly to the backbone's features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .configuration import Settings
from .layout import Layout, Names, Node, context_head, depth, direct_head, network, width

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, for pixels in [0, 255]
_SCAFFOLD = {"convs", "conv_cat", "conv_seg"}
_HEADS = {  # the modules in the head of each network family
    "ccnet": _SCAFFOLD | {"cca"},
    "nonlocal": _SCAFFOLD | {"nl_block"},
    "fcn": _SCAFFOLD,
    "pspnet": {"psp_modules", "bottleneck", "conv_seg"},
    "deeplabv3": {"image_pool", "aspp_modules", "bottleneck", "conv_seg"},
}


def recognises(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys follow this layout; the network may still be unsupported."""
    return any(key.startswith("decode_head.") for key in tensors)


def layout(tensors: Mapping[str, Tensor], *, recurrence: int, align_corners: bool, trained: Settings) -> Layout:
    """Infer the layout of a file from its keys and tensor shapes.

    Args:
        tensors: those of the file.
        recurrence: number of loops R of a criss-cross head, which cannot be inferred from the weights.
        align_corners: whether bilinear upsampling aligns corners.
        trained: the settings in the file's configuration.

    Raises:
        ValueError: the network has an unsupported head, a backbone other than ResNet-50 or -101, or was trained with
            another number of loops or unsuitable image statistics.
    """
    family = _family(tensors)
    if family == "ccnet" and trained.recurrence not in (None, recurrence):
        raise ValueError(
            f"it was trained with recurrence={trained.recurrence}, not {recurrence}: set "
            f"published.recurrence={trained.recurrence}, or recurrence={trained.recurrence} in Python"
        )
    context, names = _context(family, align_corners)
    if context is not None and family in ("pspnet", "deeplabv3"):
        head = direct_head(width(tensors, "decode_head.bottleneck.conv.weight", 512), context)
    else:
        channels = width(tensors, "decode_head.convs.0.conv.weight", 512)
        head = context_head(channels, context, recurrence=recurrence if family == "ccnet" else 1)
        names += _conv_module("head.reduce", "decode_head.convs.0")
        names += _conv_module("head.project", "decode_head.convs.1")
        names += _conv_module("head.bottleneck", "decode_head.conv_cat")
    deep_stem = any(key.startswith("backbone.stem.") for key in tensors)  # ResNetV1c
    if deep_stem:
        names += [("backbone.net.conv1", "backbone.stem"), ("backbone.net.bn1", "backbone.stem.7")]
    return Layout(
        model=network(
            {
                "_target_": "ccnet.models.backbone.TimmBackbone",
                "name": f"resnet{depth(tensors, 'backbone.')}{'c' if deep_stem else ''}",
            }
            | _images(tensors, "backbone.stem.0.weight" if deep_stem else "backbone.conv1.weight", trained),
            head,
            {"channels": width(tensors, "auxiliary_head.convs.0.conv.weight", 256)},
            num_classes=width(tensors, "decode_head.conv_seg.weight", 19),
            align_corners=align_corners,
        ),
        names=[
            *names,
            ("backbone.net", "backbone"),
            ("head.classify", "decode_head.conv_seg"),
            *_conv_module("aux_head.hidden", "auxiliary_head.convs.0"),
            ("aux_head.classify", "auxiliary_head.conv_seg"),
        ],
        fold=_image_branch_last if family == "deeplabv3" else None,
    )


def _images(tensors: Mapping[str, Tensor], first: str, trained: Settings) -> Node:
    """Return the backbone's settings for images: number of channels, mean and standard deviation.

    The defaults, RGB and the statistics of ImageNet, are omitted.
    """
    number = tensors[first].shape[1] if first in tensors and tensors[first].ndim == 4 else 3
    node: Node = {} if number == 3 else {"in_channels": number}
    for key, published, imagenet in (("mean", trained.mean, _MEAN), ("std", trained.std, _STD)):
        if published is None or published == imagenet:
            continue
        if len(published) != number or (key == "std" and min(published) <= 0):
            raise ValueError(f"it was trained with {key}={published} on images of {number} channels")
        node[key] = [value / 255 for value in published]
    return node


def _family(tensors: Mapping[str, Tensor]) -> str:
    """Return the key of _HEADS that best matches the file's head; raise ValueError if the head has other modules."""
    head = {key.split(".")[1] for key in tensors if key.startswith("decode_head.")}
    nearest = max(_HEADS, key=lambda family: len(_HEADS[family] & head) / len(_HEADS[family] | head))
    if foreign := sorted(head - _HEADS[nearest]):
        raise ValueError(
            f"of mmsegmentation's heads, only {', '.join(_HEADS)} can be imported; the closest is {nearest}, but "
            f"this one also has decode_head.{', decode_head.'.join(foreign)}"
        )
    return nearest


def _conv_module(ours: str, theirs: str) -> Names:
    """Map the names in ``conv_bn_relu`` to those in mmsegmentation's ConvModule."""
    return [(f"{ours}.0", f"{theirs}.conv"), (f"{ours}.1", f"{theirs}.bn")]


def _context(family: str, align_corners: bool) -> tuple[Node | None, Names]:
    """Return the configuration node of the context module, and its names in the file."""
    match family:
        case "ccnet":
            return {"_target_": "ccnet.models.criss_cross.CrissCrossAttention"}, [
                ("head.context.gamma", "decode_head.cca.gamma.scale"),
                ("head.context", "decode_head.cca"),
            ]
        case "nonlocal":
            return {"_target_": "ccnet.models.context.non_local.BottleneckNonLocal"}, [
                ("head.context.query_conv", "decode_head.nl_block.theta.conv"),
                ("head.context.key_conv", "decode_head.nl_block.phi.conv"),
                ("head.context.value_conv", "decode_head.nl_block.g.conv"),
                *_conv_module("head.context.project", "decode_head.nl_block.conv_out"),
            ]
        case "pspnet":
            bins = [1, 2, 3, 6]
            node: Node = {
                "_target_": "ccnet.models.context.pyramid.PyramidPooling",
                "bins": bins,
                "align_corners": align_corners,
            }
            names = _conv_module("head.context.fuse", "decode_head.bottleneck")
            for index in range(len(bins)):
                names += _conv_module(f"head.context.branches.{index}", f"decode_head.psp_modules.{index}.1")
            return node, names
        case "deeplabv3":
            dilations = [12, 24, 36]
            node = {
                "_target_": "ccnet.models.context.pyramid.AtrousPyramid",
                "dilations": dilations,
                "fuse_kernel_size": 3,
            }
            names = [
                *_conv_module("head.context.local", "decode_head.aspp_modules.0"),
                *_conv_module("head.context.image", "decode_head.image_pool.1"),
                *_conv_module("head.context.fuse", "decode_head.bottleneck"),
            ]
            for index in range(len(dilations)):
                names += _conv_module(f"head.context.dilated.{index}", f"decode_head.aspp_modules.{index + 1}")
            return node, names
        case _:  # fcn
            return None, []


def _image_branch_last(weights: dict[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Reorder the pyramid's channels: mmsegmentation puts the image pooling branch first, this project puts it last."""
    fuse = weights["head.context.fuse.0.weight"]
    width = weights["head.context.image.0.weight"].shape[0]
    weights["head.context.fuse.0.weight"] = torch.roll(fuse, -width, dims=1)
