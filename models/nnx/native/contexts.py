"""Descriptions of the context modules, built from their weights and configuration nodes."""

from collections.abc import Callable, Mapping
from typing import Any

from .. import context
from .parts import Part, Weights, conv, conv_bn_relu, sequence


def _criss_cross(weights: Weights, config: Mapping[str, Any], axes: tuple[int, ...] | None = None) -> Part:
    if axes is None and config.get("axes") is not None:
        axes = tuple(config["axes"])
    return Part(
        context.CrissCrossAttention, **_projections(weights, config), axes=axes,
        recompute=config.get("recompute", True), backend=config.get("backend", "auto"),
    )  # fmt: skip


def _projections(weights: Weights, config: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the query, key and value projections, and gamma."""
    names = ("query_conv", "key_conv", "value_conv")
    layers: dict[str, Any] = {name: conv(weights.at(name), bias=True) for name in names}
    learned = config.get("gamma", "learned") == "learned"
    return layers | {"gamma": weights.vector("gamma", 1) if learned else None}


def _in_turn(weights: Weights, config: Mapping[str, Any], first: int = 1) -> Part:
    """Describe attention along axis ``first`` and then along the other: 1 for rows, 0 for columns."""
    return sequence([_criss_cross(weights.at(i), config, (axis,)) for i, axis in enumerate((first, 1 - first))])


def _in_both_orders(weights: Weights, config: Mapping[str, Any]) -> Part:
    orders = {"hv": _in_turn(weights.at("hv"), config), "vh": _in_turn(weights.at("vh"), config, first=0)}
    return Part(context.ParallelHorizontalVertical, **orders)


def _non_local(weights: Weights, config: Mapping[str, Any]) -> Part:
    return Part(context.NonLocal, **_projections(weights, config))


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
    sides = {name: sequence([conv(weights.at(name).at(i), bias=True) for i in (0, 1)]) for name in ("left", "right")}
    return Part(context.GlobalConvolution, **sides)


# Keyed by the name of the torch class.
CONTEXTS: dict[str, Callable[[Weights, Mapping[str, Any]], Part]] = {
    "CrissCrossAttention": _criss_cross,
    "HorizontalVertical": _in_turn,
    "ParallelHorizontalVertical": _in_both_orders,
    "NonLocal": _non_local,
    "PyramidPooling": _pyramid,
    "AtrousPyramid": _atrous,
    "GlobalConvolution": _global_convolution,
}
