"""Networks built from a configuration and a weight file, without torch, torchvision or timm."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors import safe_open

from . import context, segmentor
from .native_backbones import backbone
from .parts import Part, Weights, build, conv, conv_bn_relu, sequence

_HEADER = "ccnet"  # the metadata of a run's .safetensors file that holds its configuration; see engine.checkpoints


def load_network(path: str | Path, config: Mapping[str, Any] | None = None) -> nnx.Module:
    """Return the Flax NNX network of a weight file, in evaluation mode; neither torch nor timm is imported.

    The semantic segmentation networks are supported with timm's ResNets (plain, c, d, s and t stems, wide, ResNeXt,
    squeeze-and-excitation, ECA) and MobileNetV2s.

    Args:
        path: a .safetensors file with the torch network's state dict, such as a run's ``best.safetensors``.
        config: the ``model`` node of the resolved configuration; None to read it from a run's file.

    Raises:
        ValueError: the network cannot be built without torch, or the weights do not belong to it.
    """
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        header = (file.metadata() or {}).get(_HEADER)
    if config is None:
        if header is None:
            raise ValueError(f"{path} records no configuration: pass the model node of its configuration as config")
        config = json.loads(header)["config"]["model"]
    return _network(tensors, config)


def _network(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> nnx.Module:
    _require(config, "Segmentor")
    weights, node = Weights(tensors), config["backbone"]
    made = build(
        Part(
            segmentor.Segmentor,
            mean=weights["mean"],
            std=weights["std"],
            backbone=backbone(
                weights.at("backbone"), node["name"], node.get("output_stride", 8), node.get("out_indices", (-2, -1))
            ),
            head=_head(weights.at("head"), config["head"]),
            aux_head=_aux_head(weights.at("aux_head"), config["aux_head"]) if config.get("aux_head") else None,
            embed=conv(weights.at("embed")) if config.get("embedding_channels") else None,
            align_corners=config.get("align_corners", True),
        )
    )
    unused = sorted(set(tensors) - weights.used)
    if unused:
        raise ValueError(
            f"the configuration does not use {len(unused)} tensors of the weight file, such as {unused[0]}"
        )
    return made


def _require(config: Mapping[str, Any], *names: str) -> str:
    """Return the class that a node names; raise ValueError unless it is one of ``names``."""
    name = config["_target_"].rpartition(".")[2]
    if name not in names:
        raise ValueError(f"{config['_target_']} cannot be built without torch, only {', '.join(names)}")
    return name


def _head(weights: Weights, config: Mapping[str, Any]) -> Part:
    _require(config, "ContextHead")
    slope, recurrence = config.get("negative_slope", 0.0), config.get("recurrence", 1)
    layers = {
        name: conv_bn_relu(weights.at(name), negative_slope=slope) for name in ("reduce", "project", "bottleneck")
    }
    attend = _context(weights.at("context"), config["context"]) if recurrence else sequence([])
    return Part(
        segmentor.ContextHead, **layers, context=attend, classify=conv(weights.at("classify")), recurrence=recurrence,
        dropout=_dropout(config),
    )  # fmt: skip


def _aux_head(weights: Weights, config: Mapping[str, Any]) -> Part:
    _require(config, "FCNHead")
    hidden = conv_bn_relu(weights.at("hidden"), negative_slope=config.get("negative_slope", 0.0))
    return Part(segmentor.FCNHead, hidden=hidden, classify=conv(weights.at("classify")), dropout=_dropout(config))


def _dropout(config: Mapping[str, Any]) -> Part:
    return Part(lambda *_: nnx.Module(), p=config.get("dropout", 0.1))


# ---- context modules, each called with its weights and its node of the configuration


def _context(weights: Weights, config: Mapping[str, Any]) -> Part:
    return _CONTEXTS[_require(config, *_CONTEXTS)](weights, config)


def _criss_cross(weights: Weights, config: Mapping[str, Any], axes: tuple[int, ...] | None = None) -> Part:
    if axes is None and config.get("axes") is not None:
        axes = tuple(config["axes"])
    return Part(
        context.CrissCrossAttention, **_projections(weights), axes=axes, recompute=config.get("recompute", True),
        backend=config.get("backend", "auto"),
    )  # fmt: skip


def _projections(weights: Weights) -> dict[str, Any]:
    """Return the descriptions of the query, key and value projections, and gamma."""
    layers: dict[str, Any] = {name: conv(weights.at(name)) for name in ("query_conv", "key_conv", "value_conv")}
    return layers | {"gamma": weights.get("gamma")}


def _in_turn(weights: Weights, config: Mapping[str, Any], first: int = 1) -> Part:
    """Describe attention along one axis and then along the other; 1 attends within rows, 0 within columns."""
    return sequence([_criss_cross(weights.at(i), config, (axis,)) for i, axis in enumerate((first, 1 - first))])


def _in_both_orders(weights: Weights, config: Mapping[str, Any]) -> Part:
    orders = {"hv": _in_turn(weights.at("hv"), config), "vh": _in_turn(weights.at("vh"), config, first=0)}
    return Part(context.ParallelHorizontalVertical, **orders)


def _non_local(weights: Weights, config: Mapping[str, Any]) -> Part:
    return Part(context.NonLocal, **_projections(weights))


def _pyramid(weights: Weights, config: Mapping[str, Any]) -> Part:
    branches = sequence([conv_bn_relu(weights.at("branches").at(i)) for i in range(weights.at("branches").count())])
    bins, align_corners = tuple(config.get("bins", (1, 2, 3, 6))), config.get("align_corners", True)
    fuse = conv_bn_relu(weights.at("fuse"))
    return Part(context.PyramidPooling, branches=branches, fuse=fuse, bins=bins, align_corners=align_corners)


def _atrous(weights: Weights, config: Mapping[str, Any]) -> Part:
    dilations = config.get("dilations", (12, 24, 36))
    dilated = [conv_bn_relu(weights.at("dilated").at(i), dilation=rate) for i, rate in enumerate(dilations)]
    layers = {name: conv_bn_relu(weights.at(name)) for name in ("local", "image", "fuse")}
    return Part(context.AtrousPyramid, **layers, dilated=sequence(dilated))


def _global_convolution(weights: Weights, config: Mapping[str, Any]) -> Part:
    sides = {name: sequence([conv(weights.at(name).at(i)) for i in (0, 1)]) for name in ("left", "right")}
    return Part(context.GlobalConvolution, **sides)


_CONTEXTS: dict[str, Callable[[Weights, Mapping[str, Any]], Part]] = {
    "CrissCrossAttention": _criss_cross,
    "HorizontalVertical": _in_turn,
    "ParallelHorizontalVertical": _in_both_orders,
    "NonLocal": _non_local,
    "PyramidPooling": _pyramid,
    "AtrousPyramid": _atrous,
    "GlobalConvolution": _global_convolution,
}
