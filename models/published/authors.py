"""The CCNet authors' layout: networks/ccnet.py in github.com/speedinghzl/CCNet, identical in all branches.

The networks use in-place activated batch norm (Rota Bulò et al., CVPR 2018), which scales by |weight| + eps. The
activation is leaky ReLU with slope 0.01 in the head and the auxiliary head, and ReLU in the backbone. Images are BGR in
[0, 255].
"""

from collections.abc import Mapping

from torch import Tensor

from .layout import Layout, context_head, depth, network, width

CROP = (769, 769)  # training crop, (H, W) in pixels
_EPS = 1e-5  # batch norm epsilon, which in-place activated batch norm also adds to |weight|
_HEAD = {"conva", "cca", "convb", "bottleneck"}
_STEM = [("conv1.0", "conv1"), ("conv1.1", "bn1"), ("conv1.3", "conv2"), ("conv1.4", "bn2"), ("conv1.6", "conv3")]


def recognises(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the keys follow this layout; the network may still be unsupported."""
    return any(key.startswith("head.") for key in tensors) and any(key.startswith("dsn.") for key in tensors)


def layout(tensors: Mapping[str, Tensor], *, recurrence: int, align_corners: bool) -> Layout:
    """Infer the layout of a file from its keys and tensor shapes.

    Args:
        tensors: those of the file.
        recurrence: number of loops R, which cannot be inferred from the weights.
        align_corners: whether bilinear upsampling aligns corners.

    Raises:
        ValueError: the network is not CCNet with a ResNet-50 or -101 backbone.
    """
    head = {key.split(".")[1] for key in tensors if key.startswith("head.")}
    if foreign := sorted(head - _HEAD):
        raise ValueError(
            f"of the authors' networks, only ccnet can be imported: its head has {', '.join(sorted(_HEAD))}; this one "
            f"has {', '.join(foreign)}"
        )
    channels = width(tensors, "head.conva.0.weight", 512)
    cca = {"_target_": "ccnet.models.criss_cross.CrissCrossAttention"}
    leaky = {"negative_slope": 0.01}
    return Layout(
        model=network(
            {"_target_": "ccnet.models.published.backbone.CaffeResNet", "name": f"resnet{depth(tensors, '')}s"},
            context_head(channels, cca, recurrence=recurrence) | leaky,
            {"channels": width(tensors, "dsn.0.weight", 512)} | leaky,
            num_classes=width(tensors, "head.bottleneck.3.weight", 19),
            align_corners=align_corners,
        ),
        names=[
            *((f"backbone.net.{ours}", theirs) for ours, theirs in _STEM),
            ("backbone.net.bn1", "bn3"),
            *((f"backbone.net.layer{stage}", f"layer{stage}") for stage in (1, 2, 3, 4)),
            ("head.reduce", "head.conva"),
            ("head.context", "head.cca"),
            ("head.project", "head.convb"),
            ("head.bottleneck", "head.bottleneck"),
            ("head.classify", "head.bottleneck.3"),
            ("aux_head.hidden", "dsn"),
            ("aux_head.classify", "dsn.3"),
        ],
        folded={"aux_head.hidden.1.running_mean": "dsn.0.bias"},
        fold=_fold,
    )


def _fold(weights: dict[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Convert the weights in-place: from in-place activated to plain batch norm, and from BGR to RGB images."""
    for key in weights:
        if key.endswith(".running_mean"):
            scale = key.replace("running_mean", "weight")
            weights[scale] = weights[scale].abs() + _EPS
    # A bias before a batch norm only shifts the mean that the norm subtracts.
    mean = "aux_head.hidden.1.running_mean"
    weights[mean] = weights[mean] - tensors["dsn.0.bias"].float()
    weights["backbone.net.conv1.0.weight"] = weights["backbone.net.conv1.0.weight"].flip(1)  # BGR -> RGB
