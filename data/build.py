"""Build data sets from a composed configuration."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig

from .dataset import ImageDataset
from .image_pairs import ImagePairs
from .reading.label_files import LabelFormat
from .roots import root_of


def build_dataset(config: DictConfig, split: str, transform: Callable[..., Any] | None) -> ImageDataset:
    """Instantiate the data set of ``config[split]``, with ``config.root`` if it has a single root folder.

    Args:
        config: the ``dataset`` node.
        split: the name of a node in ``config``, such as "train" or "val".
        transform: maps (image, annotations) to (image, annotations); None returns them as stored.

    Raises:
        ValueError: the data set has no such split, or the transform is not callable.
    """
    if not isinstance(config.get(str(split)), DictConfig):
        nodes = [str(name) for name, node in config.items() if isinstance(node, DictConfig) and "_target_" in node]
        raise ValueError(f"this data set has no split {split!r}: choose one of {', '.join(nodes)}")
    if not (transform is None or callable(transform)):
        raise ValueError(
            f"recipe.train_transform is {transform}: set its _target_, such as ccnet.data.transforms.train_transform"
        )
    root = {"root": root_of(config)} if "root" in config and "images" not in config else {}
    return instantiate(config[split], transform=transform, **root)


def label_format(config: Mapping[str, Any], classes: Sequence[str]) -> LabelFormat:
    """Return the format of a data set's label images, without accessing its files.

    Args:
        config: the ``dataset`` node of a validated configuration; if it is empty, label images contain class indices.
        classes: the names of the K classes.
    """
    nodes = (node for node in config.values() if isinstance(node, Mapping) and "_target_" in node)
    options = dict(config.get("val") or next(nodes, {}))
    dataset = get_object(options.pop("_target_", f"{__package__}.image_pairs.ImagePairs"))
    of_dataset = getattr(dataset, "label_format", ImagePairs.label_format)
    return of_dataset(classes, **{name: value for name, value in options.items() if name != "classes"})
