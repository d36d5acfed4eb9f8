"""Restore networks from checkpoints: build them from the configuration, then load the weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ...conf import CONF
from ...models import tensor_files
from ...models.factory import build, with_classes
from ...models.layers import Uninitialised
from ..guards.settings import replaced
from ..runtime.overrides import given_options, given_overrides
from .inherited_data import passed_on
from .options import is_within, without_pretrained
from .reading import check_published, find, load
from .record import Checkpoint

# The layers with one output per class, of the heads of Segmentor and Parser and of torchvision's Mask R-CNN.
_CLASSIFIERS = ("classify.", "box_predictor.", "mask_predictor.mask_fcn_logits.")
_IN_RECIPE = ("recipe.head", "recipe.min_size", "recipe.max_size")  # options that the files in conf/model refer to


def network(checkpoint: Checkpoint) -> nn.Module:
    """Restore a checkpoint's network, weights included, and return it in eval mode."""
    model = _model_node(checkpoint)
    head = model.get("head")
    number = head["num_classes"] if isinstance(head, dict) and "num_classes" in head else model.get("num_classes")
    if number != len(checkpoint.classes):
        raise ValueError(f"the checkpoint's network has {number} classes, but it names {len(checkpoint.classes)}")
    with Uninitialised():
        empty = _build_for_weights(model, checkpoint.weights)
    return _load_weights(empty, checkpoint.weights).eval()


def start_from(source: Checkpoint, config: DictConfig, *, classes: Sequence[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Return a checkpoint's network as the starting point of a new run, and the ``model`` node that builds it.

    Classifiers are initialised randomly if the run and the checkpoint differ in the number of classes, or list the same
    classes in a different order. The embedding of the category consistent loss is always initialised randomly.

    Args:
        source: a run's checkpoint, or a published one.
        config: the new run's configuration, which determines the embedding.
        classes: the names of the K classes of the new run's data set.

    Raises:
        ValueError: the checkpoint cannot be used, or its run scaled images differently; see `_check_scaling`.
    """
    _check_scaling(f"init={config.init}", source, config)
    model = _model_node(source)
    if "embedding_channels" in model:
        model["embedding_channels"] = OmegaConf.select(config, "model.embedding_channels")
    model = with_classes(model, len(classes))
    network = _build_for_weights(model, source.weights)
    weights = {key: tensor for key, tensor in source.weights.items() if not key.startswith("embed.")}
    reorders = bool(reordered(source.classes, classes))
    for key, tensor in network.state_dict().items():
        classifies = any(part in key for part in _CLASSIFIERS) and key in weights
        if key.startswith("embed.") or (classifies and (reorders or weights[key].shape != tensor.shape)):
            weights[key] = tensor
    return _load_weights(network, weights), model


def reordered(known: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the names in `classes` that `known` contains at another index."""
    return [name for index, name in enumerate(classes) if name in known and name not in known[index : index + 1]]


def initial_network(
    config: DictConfig, saved: Checkpoint | None, *, classes: Sequence[str]
) -> tuple[nn.Module, DictConfig]:
    """Return the network to train, and the configuration with the values that only become known at run time.

    These are the number of classes; with ``init``, the ``model`` node of the checkpoint that ``init`` names; and the
    public data sets that the initial weights were trained on.

    Args:
        config: the run's configuration.
        saved: the checkpoint to resume from, if any.
        classes: the names of the K classes of the data set.

    Raises:
        ValueError: ``init`` is combined with options for a different network, or the run that the weights come from
            scaled images differently.
    """
    num_classes = len(classes)
    if saved:
        return network(saved).train(), replaced(config, num_classes=num_classes)
    if config.init is None:
        weights = OmegaConf.select(config, "backbone.weights")
        source = _if_checkpoint(weights) if weights else None
        if source:
            _check_scaling(f"backbone.weights={weights}", source, config)
        run_time = {"num_classes": num_classes, "inherited_data": passed_on(source)}
        return build(config.model, num_classes=num_classes), replaced(config, **run_time)
    overrides = [f"{option}={value}" for option, value in given_overrides().items() if _chooses_network(option, value)]
    if overrides:
        raise ValueError(f"init={config.init} already determines the network: remove {' '.join(overrides)}")
    source = load(find(config.init), **config.published)
    check_published([source])
    model, node = start_from(source, config, classes=classes)
    return model, replaced(config, num_classes=num_classes, model=node, inherited_data=passed_on(source))


def _if_checkpoint(file: str) -> Checkpoint | None:
    """Return the checkpoint that ``backbone.weights`` names; None for a state dict of timm, or an unreadable file."""
    try:
        return load(find(file))
    except (FileNotFoundError, ValueError):
        return None


def _check_scaling(option: str, source: Checkpoint, config: DictConfig) -> None:
    """Raise ValueError if a checkpoint's run set ``dataset.value_range`` and the new run leaves it at its default."""
    value_range = source.value_range
    unset = "value_range" in config.dataset and config.dataset.value_range is None
    if value_range is not None and unset and "dataset.value_range" not in given_options():
        raise ValueError(
            f"{option} comes from a run with dataset.value_range={list(value_range)}, but this run does not set it and "
            f"would scale images of more than 8 bits differently: set dataset.value_range=[{value_range[0]},"
            f"{value_range[1]}], or the values of black and white in these images, or null for their full range"
        )


def _model_node(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's ``model`` node, with a backbone that neither downloads nor reads pretrained weights."""
    model = checkpoint.setting("model")
    if not isinstance(model.get("backbone"), dict):
        raise ValueError("the checkpoint's config has no model.backbone")
    return without_pretrained(model)


def _build_for_weights(model: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    try:
        network = build(model, holding=tensor_files.size(weights))
    except InstantiationException as error:
        raise ValueError(f"the checkpoint's network cannot be built from its config: {error.__cause__}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"the checkpoint's config describes a {type(network).__name__}, not a network")
    return network


def _load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's weights do not match the network in its config: {error}") from error
    return network


def _chooses_network(option: str, value: Any) -> bool:
    option = option.lstrip("+~").replace("/", ".")  # model/context=none selects a part of the model
    if option == "experiment":
        return any(map(_experiment_chooses_network, value if isinstance(value, list) else [value]))
    if option == "backbone.in_channels":  # it also determines how images are read
        return False
    return is_within(option, "model", "backbone", *_IN_RECIPE)


def _experiment_chooses_network(name: str) -> bool:
    """Return True if a file in ``conf/experiment`` selects or changes a model or backbone."""
    path = CONF / "experiment" / f"{name}.yaml"
    if not path.is_file():  # a user's own, in another folder
        return False
    content: Any = OmegaConf.load(path)
    groups = [key for entry in content.get("defaults", []) if OmegaConf.is_dict(entry) for key in entry]
    parts = {key.removeprefix("override ").lstrip("/").partition("/")[0] for key in (*content, *groups)}
    return not parts.isdisjoint(("model", "backbone"))
