"""Networks from checkpoints: built once from the configuration, then filled with the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ...models import tensor_files
from ...models.factory import build
from .reading import load
from .record import Checkpoint


def network(checkpoint: Checkpoint) -> nn.Module:
    """Return the checkpoint's network with its weights, in eval mode."""
    model = _model_node(checkpoint)
    head = model.get("head")
    number = head["num_classes"] if isinstance(head, dict) and "num_classes" in head else model.get("num_classes")
    if number != len(checkpoint.classes):
        raise ValueError(f"the checkpoint's network has {number} classes and it names {len(checkpoint.classes)}")
    return _filled(_built(model, checkpoint.weights), checkpoint.weights).eval()


def start_from(path: Path, config: DictConfig, *, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a checkpoint for a new run to train, and the ``model`` node that builds it.

    Classifiers start from random weights if the run has another number of classes than the checkpoint; the embedding
    of the category consistent loss always does.

    Args:
        path: a run's checkpoint, or a published one.
        config: the new run's configuration, which says what a published file does not, and whether to embed.
        num_classes: K of the new run's data set.
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


def _model_node(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the checkpoint's ``model`` node, whose backbone neither downloads nor reads weights of its own."""
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
        raise ValueError(f"the checkpoint's config describes a {type(made).__name__} and no network")
    return made


def _filled(made: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    try:
        made.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's weights do not fit the network of its config: {error}") from error
    return made
