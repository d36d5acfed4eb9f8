"""Hash the contents of a run's data sets and weight files, to detect changes when the run is resumed."""

import hashlib
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ...data import ImageDataset, contents_of
from ..checkpoints.reading import find
from ..runtime.atomic_files import given_path


def data_contents(train_set: ImageDataset, val_set: ImageDataset) -> dict[str, str]:
    """Return the number of images and a hash of each data set of a run; see :func:`ccnet.data.contents_of`."""
    return {"training data": contents_of(train_set), "validation data": contents_of(val_set)}


def weight_contents(config: DictConfig) -> dict[str, str]:
    """Return {option: hash} for the files from which the initial weights of a run are read."""
    return {name: digest(value) for name, value in weight_files(config).items()}


def weight_files(config: DictConfig) -> dict[str, str]:
    """Return {option: file} for the files from which the initial weights of a run are read."""
    if config.init is not None:
        return {"init": config.init}
    weights = OmegaConf.select(config, "backbone.weights")
    return {} if weights is None else {"backbone.weights": weights}


def digest(value: Any) -> str:
    """Return a hash of a weight file; `value` is its path, or a name as for :func:`ccnet.engine.checkpoints.find`.

    Raises:
        FileNotFoundError: the file no longer exists.
    """
    path = given_path(value)
    with open(path if path.is_file() else find(value), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def changed(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Describe the contents that differ, such as "other training data (4 images, ... instead of 5 images, ...)"."""
    return [
        f"other {name} ({was.get(name, 'nothing')} instead of {now.get(name, 'nothing')})"
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    ]
