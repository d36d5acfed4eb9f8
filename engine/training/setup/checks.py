"""Check the configuration of a run against its network and data set."""

from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ....losses import WeightedSum
from ...checkpoints.options import flat


def check_channels(config: DictConfig, dataset: Any) -> None:
    """Raise ValueError unless the data set's images have as many channels as the network expects."""
    takes, has = config.model.backbone.get("in_channels", 3), getattr(dataset, "channels", 3)
    if takes != has:
        raise ValueError(
            f"the network takes {takes} channels and the images of this data set are read with {has}: set "
            f"backbone.in_channels={takes if config.init is not None else has}; dataset=folder and dataset=coco read "
            "images of any number of channels"
        )


def check_statistics(config: DictConfig) -> None:
    """Raise ValueError if a new run is given the statistics of images in [0, 255] instead of [0, 1]."""
    for name in ("mean", "std"):
        values = OmegaConf.select(config, f"model.backbone.{name}")  # a missing backbone is reported later
        if values is not None and max(values, default=0) > 1:
            raise ValueError(
                f"backbone.{name}={list(values)}: set the statistics of images in [0, 1], which check_data.py prints; "
                "those of values up to 255 have to be divided by 255"
            )


def check_outputs(model: nn.Module, criterion: nn.Module) -> None:
    """Raise ValueError if a term of the loss reads an output that the network does not return in training."""
    names: Any = getattr(model, "training_outputs", None)
    if names is not None and isinstance(criterion, WeightedSum):
        criterion.check_outputs(names)


def check_batch(config: DictConfig) -> None:
    """Raise ValueError if a network with global pooling would see one image at a time.

    Global pooling leaves one value per image and channel, and batch norm needs at least two in training.
    """
    images = config.recipe.batch_size // config.accumulate
    targets = [value for option, value in flat(config.model).items() if value and option.endswith("_target_")]
    pooling = [name.rpartition(".")[2] for name in targets if getattr(get_object(name), "pools", False)]
    if images == 1 and pooling:
        raise ValueError(
            f"recipe.batch_size={config.recipe.batch_size} with accumulate={config.accumulate} passes one image at a "
            f"time through the network, but the batch norm after the global pooling of {pooling[0]} needs two: set "
            "recipe.batch_size to at least twice accumulate. With several processes (torchrun), batch norm is "
            "synchronised, so that one image per process is enough"
        )
