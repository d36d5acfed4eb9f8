"""Restore networks from checkpoints: build them from the configuration, then load the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ...models import tensor_files
from ...models.factory import build
from ..guards.settings import replaced
from ..runtime.overrides import given_overrides
from .reading import find, load
from .record import Checkpoint


def network(checkpoint: Checkpoint) -> nn.Module:
    """Restore a checkpoint's network, weights included, and return it in eval mode."""
    model = _model_node(checkpoint)
    head = model.get("head")
    number = head["num_classes"] if isinstance(head, dict) and "num_classes" in head else model.get("num_classes")
    if number != len(checkpoint.classes):
        raise ValueError(f"the checkpoint's network has {number} classes, but it names {len(checkpoint.classes)}")
    return _filled(_built(model, checkpoint.weights), checkpoint.weights).eval()


def start_from(path: Path, config: DictConfig, *, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return a checkpoint's network as the starting point of a new run, and the ``model`` node that builds it.

    Classifiers are initialised randomly if the run and the checkpoint differ in the number of classes. The embedding
    of the category consistent loss is always initialised randomly.

    Args:
        path: a run's checkpoint, or a published one.
        config: the new run's configuration; it supplies what a published file does not record, and determines the
            embedding.
        num_classes: the number of classes (K) of the new run's data set.
    """
    given = load(path, **config.published)
    model = _model_node(given)
    if "embedding_channels" in model:
        model["embedding_channels"] = OmegaConf.select(config, "model.embedding_channels")
    for part in ("head", "aux_head"):
        if isinstance(model.get(part), dict):
            model[part] = model[part] | {"num_classes": num_classes}
    made = _built(model, given.weights)
    weights = {key: tensor for key, tensor in given.weights.items() if not key.startswith("embed.")}
    for key, tensor in made.state_dict().items():
        if key.startswith("embed.") or ("classify." in key and key in weights and weights[key].shape != tensor.shape):
            weights[key] = tensor
    return _filled(made, weights), model


def initial_network(config: DictConfig, saved: Checkpoint | None, *, num_classes: int) -> tuple[nn.Module, DictConfig]:
    """Return the network to train, and the configuration with the values that only become known at run time.

    These are the number of classes and, with ``init``, the ``model`` node of the checkpoint that ``init`` names.

    Args:
        config: the run's configuration.
        saved: the checkpoint to resume from, if any.
        num_classes: the number of classes (K) of the data set.

    Raises:
        ValueError: ``init`` is combined with options for a different network.
    """
    if saved:
        return network(saved).train(), replaced(config, num_classes=num_classes)
    if config.init is None:
        return build(config.model, num_classes=num_classes), replaced(config, num_classes=num_classes)
    given = [f"{option}={value}" for option, value in given_overrides().items() if _chooses_network(option)]
    if given:
        raise ValueError(f"init={config.init} already determines the network: remove {' '.join(given)}")
    made, node = start_from(find(config.init), config, num_classes=num_classes)
    return made, replaced(config, num_classes=num_classes, model=node)


def _model_node(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's ``model`` node, with a backbone that neither downloads nor reads pretrained weights."""
    model = checkpoint.setting("model")
    if not isinstance(model.get("backbone"), dict):
        raise ValueError("the checkpoint's config has no model.backbone")
    return model | {"backbone": model["backbone"] | {"pretrained": False, "weights": None}}


def _built(model: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    try:
        made = build(model, holding=tensor_files.size(weights))
    except InstantiationException as error:
        raise ValueError(f"the checkpoint's network cannot be built from its config: {error.__cause__}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"the checkpoint's config describes a {type(made).__name__}, not a network")
    return made


def _filled(made: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    try:
        made.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's weights do not match the network in its config: {error}") from error
    return made


def _chooses_network(option: str) -> bool:
    # backbone.in_channels also determines how images are read.
    return option.partition(".")[0] in ("model", "backbone") and option != "backbone.in_channels"
