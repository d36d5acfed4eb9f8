"""Load a network from a weight file and a configuration."""

# Flax states and some JAX functions are only partially typed.

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from ...checksums import CHECKSUM, HEADER, checksum
from .. import segmentor
from .backbones import backbone
from .contexts import CONTEXTS
from .parts import Part, Weights, build, conv, conv_bn_relu, sequence


def load_network(path: str | Path, config: Mapping[str, Any] | None = None) -> nnx.Module:
    """Load a weight file as a Flax NNX network in evaluation mode, without importing torch or timm.

    The semantic segmentation networks are supported with timm's ResNets (plain, c, d, s and t stems, wide, ResNeXt,
    squeeze-and-excitation, ECA) and MobileNetV2s.

    Args:
        path: a .safetensors file with the torch network's state dict, such as a run's ``best.safetensors``.
        config: the ``model`` node of the resolved configuration; None to read it from the metadata of a run's file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, the network cannot be built without torch, its weights do not match its
            configuration, or a file without metadata is loaded without ``config``.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}: a run writes best.safetensors")
    try:
        with cast(Any, safe_open)(path, framework="numpy") as file:
            stored: dict[str, np.ndarray] = {name: file.get_tensor(name) for name in list(file.keys())}
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a .safetensors file, or it is damaged: {error}") from error
    content = {name: np.ascontiguousarray(array).reshape(-1).view(np.uint8) for name, array in stored.items()}
    if metadata.get(CHECKSUM) not in (None, checksum(metadata.get(HEADER, ""), content)):
        raise ValueError(f"{path} is damaged: its content does not match its checksum")
    tensors = {name: _as_float32(array) for name, array in stored.items()}
    if config is None:
        header = metadata.get(HEADER)
        if header is None:
            raise ValueError(f"{path} records no configuration: pass the model node of its configuration as config")
        return _network(tensors, json.loads(header)["config"]["model"])
    return _network(tensors, config)


def _as_float32(array: np.ndarray) -> np.ndarray:
    """Return floating-point arrays as float32, as torch does; published networks store large tensors in float16."""
    return array.astype(np.float32, copy=False) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _network(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> nnx.Module:
    _require(config, "Segmentor")
    weights, node = Weights(tensors), config["backbone"]
    if "_target_" in node:
        _require(node, "TimmBackbone")
    channels = weights["mean"].size
    if not weights["mean"].shape == weights["std"].shape == (1, channels, 1, 1):
        raise ValueError(f"mean and std have shapes {weights['mean'].shape} and {weights['std'].shape}")
    network = build(
        Part(
            segmentor.Segmentor,
            mean=weights["mean"],
            std=weights["std"],
            backbone=backbone(
                weights.at("backbone"), node["name"], node.get("output_stride", 8), node.get("out_indices", (-2, -1))
            ),
            head=_head(weights.at("head"), config["head"]),
            aux_head=_aux_head(weights.at("aux_head"), config["aux_head"]) if config.get("aux_head") else None,
            embed=conv(weights.at("embed"), bias=True) if config.get("embedding_channels") else None,
            align_corners=config.get("align_corners", True),
        )
    )
    unused = sorted(set(tensors) - weights.used)
    if unused:
        raise ValueError(
            f"the configuration does not use {len(unused)} tensors of the weight file, such as {unused[0]}"
        )
    _check_shapes(network, channels)
    return network


def _check_shapes(network: nnx.Module, channels: int) -> None:
    """Trace the network without computing anything, and raise ValueError if its tensors do not fit together."""
    graph, state = nnx.split(network)

    def train(state: Any, images: jax.Array) -> Any:
        return cast(Any, nnx.merge(graph, state))(images, train=True, key=jax.random.key(0))

    try:
        jax.eval_shape(train, state, jax.ShapeDtypeStruct((2, 64, 64, channels), jnp.float32))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the tensors of the weight file do not fit together: {error}") from error


def _require(config: Mapping[str, Any], *names: str) -> str:
    """Return the class name in a node; raise ValueError unless it is one of ``names``."""
    if "_target_" not in config:
        raise ValueError("the configuration has no _target_: pass the model node of the resolved configuration")
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
        segmentor.ContextHead, **layers, context=attend, recurrence=recurrence, dropout=_dropout(config),
        classify=conv(weights.at("classify"), bias=True),
    )  # fmt: skip


def _aux_head(weights: Weights, config: Mapping[str, Any]) -> Part:
    _require(config, "FCNHead")
    hidden = conv_bn_relu(weights.at("hidden"), negative_slope=config.get("negative_slope", 0.0))
    classify = conv(weights.at("classify"), bias=True)
    return Part(segmentor.FCNHead, hidden=hidden, classify=classify, dropout=_dropout(config))


def _dropout(config: Mapping[str, Any]) -> Part:
    return Part(lambda part, twin: nnx.Module(), p=config.get("dropout", 0.1))


def _context(weights: Weights, config: Mapping[str, Any]) -> Part:
    return CONTEXTS[_require(config, *CONTEXTS)](weights, config)
