"""Where the files of a run lie, which may change when the run is resumed, and what they contain, which may not."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ...data import ImageDataset, contents_of
from ..guards.settings import plain, replaced
from ..runtime.atomic_files import given_path
from .options import flat, is_interpolated, text
from .pretrained import PACKAGED
from .reading import find

# The same options in train.py, evaluate.py and predict.py.
LOCATIONS = ("dataset.root", "dataset.images", "dataset.masks", "backbone.weights")
_LOCATION = re.compile(r"dataset\.(.+\.)?(root|images|masks)|(model\.)?backbone\.weights|init")


def is_location(name: str) -> bool:
    """Return True if an option says where files lie; the interpolated copies of such options count too."""
    return _LOCATION.fullmatch(name) is not None


def located(config: DictConfig) -> DictConfig:
    """Return a configuration whose locations are absolute, so that the run can be resumed from any folder."""
    made = replaced(config)
    for name, value in flat(plain(config)).items():
        if is_location(name) and value is not None and not is_interpolated(made, name):
            OmegaConf.update(made, name, absolute(value))
    return made


def moved(config: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's configuration with the locations on the command line.

    Args:
        config: the checkpoint's configuration.
        given: the options on the command line; those that are not locations are ignored.

    Raises:
        ValueError: the checkpoint has no such location, like ``dataset.root`` for a data set in two folders.
    """
    options = flat(config)
    for option in LOCATIONS:
        if given.get(option) is None:
            continue
        part, _, key = option.partition(".")
        places = [name for name in options if is_location(name) and part in name.split(".") and name.endswith(key)]
        if not places:
            own = " and ".join(name for name in LOCATIONS if name in options and name.startswith(part))
            raise ValueError(
                f"{text(given, option)} does not apply to this checkpoint, "
                + (f"whose files lie in {own}" if own else f"whose {part} reads no files")
            )
        config = _with_value(config, absolute(given[option]), places)
    return config


def _with_value(node: Mapping[str, Any], new: Any, names: list[str], path: str = "") -> dict[str, Any]:
    return {
        key: _with_value(value, new, names, f"{path}{key}.")
        if isinstance(value, dict)
        else (new if f"{path}{key}" in names else value)
        for key, value in node.items()
    }


def absolute(value: Any) -> str | None:
    """Return the absolute path of a location; None if it is not set, and the name of a packaged network as it is."""
    return value if value is None or value in PACKAGED else str(given_path(value).absolute())


def data_contents(train_set: ImageDataset, val_set: ImageDataset) -> dict[str, str]:
    """Return what the data sets of a run contain."""
    return {"training data": contents_of(train_set), "validation data": contents_of(val_set)}


def weight_contents(config: DictConfig) -> dict[str, str]:
    """Return what the files contain that the initial weights of a run are read from, by option."""
    return {name: digest(value) for name, value in weight_files(config).items()}


def weight_files(config: DictConfig) -> dict[str, str]:
    """Return the files that the initial weights of a run are read from, by option."""
    if config.init is not None:
        return {"init": config.init}
    weights = OmegaConf.select(config, "backbone.weights")
    return {} if weights is None else {"backbone.weights": weights}


def digest(value: Any) -> str:
    """Return a hash of a weight file, which may be given like a checkpoint; raise FileNotFoundError if it is gone."""
    path = given_path(value)
    with open(path if path.is_file() else find(value), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def changed(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the contents that differ, such as "other training data (4 images, ... instead of 5 images, ...)"."""
    return [
        f"other {name} ({was.get(name, 'nothing')} instead of {now.get(name, 'nothing')})"
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    ]
