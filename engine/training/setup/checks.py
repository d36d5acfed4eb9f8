"""Checks of a run that need its configuration together with its network or data set."""

from typing import Any

from omegaconf import DictConfig


def check_channels(config: DictConfig, dataset: Any) -> None:
    """Raise ValueError unless the data set has images with as many channels as the network takes."""
    takes, has = config.model.backbone.get("in_channels", 3), getattr(dataset, "channels", 3)
    if takes != has:
        raise ValueError(
            f"the network takes {takes} channels and the images of this data set are read with {has}: set "
            f"backbone.in_channels={takes if config.init is not None else has}; dataset=folder and dataset=coco read "
            "images of any number of channels"
        )
