"""Data sets from a composed configuration."""

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from .roots import root_of


def build_dataset(config: DictConfig, split: str, transform) -> Any:
    """Instantiate ``config[split]``, with ``config.root`` where the data set has one.

    Args:
        config: the ``dataset`` node.
        split: "train", "val" or another node of it.
        transform: of (image, labels).

    Returns:
        A :class:`SegmentationDataset`; an :class:`ImageDataset` if the labels are objects.
    """
    if not isinstance(config.get(split), DictConfig):
        nodes = [name for name, node in config.items() if isinstance(node, DictConfig) and "_target_" in node]
        raise ValueError(f"this data set has no split {split!r}: choose one of {', '.join(nodes)}")
    if not (transform is None or callable(transform)):
        raise ValueError(
            f"recipe.train_transform is {transform}: give it a _target_, such as data.transforms.train_transform"
        )
    root = {"root": root_of(config)} if "root" in config else {}
    return instantiate(config[split], transform=transform, **root)
