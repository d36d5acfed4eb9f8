"""The locations of a run's files, which may change when the run is resumed."""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..guards.settings import plain, replaced
from ..runtime.atomic_files import given_path
from .options import flat, is_interpolated, text
from .pretrained import PACKAGED

# The options that set locations on the command line; all entry points use the same names.
LOCATIONS = ("dataset.root", "dataset.images", "dataset.masks", "backbone.weights")
_LOCATION = re.compile(r"dataset\.(.+\.)?(root|images|masks)|(model\.)?backbone\.weights|init")


def is_location(name: str) -> bool:
    """Return True if an option is a file location, such as ``dataset.root`` or its copy ``dataset.train.root``."""
    return _LOCATION.fullmatch(name) is not None


def located(config: DictConfig) -> DictConfig:
    """Return a configuration with absolute locations, so that the run can be resumed from any working directory."""
    made = replaced(config)
    for name, value in flat(plain(config)).items():
        if is_location(name) and value is not None and not is_interpolated(made, name):
            OmegaConf.update(made, name, absolute(value))
    return made


def moved(config: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's configuration with its locations replaced by those on the command line.

    Args:
        config: the checkpoint's configuration.
        given: the options on the command line; those that are not locations are ignored.

    Raises:
        ValueError: the checkpoint has no such location; for example, ``dataset.root`` is set, but its data set has
            ``dataset.images`` and ``dataset.masks``.
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
                + (f"which uses {own}" if own else f"whose {part} reads no files")
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
    """Return a location as an absolute path; None and the names of packaged networks are returned unchanged."""
    return value if value is None or value in PACKAGED else str(given_path(value).absolute())
