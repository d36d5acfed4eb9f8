"""The locations of a run's files, which may change when the run is resumed."""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ...data.reading.label_values import read_file
from ..guards.settings import plain, replaced
from ..runtime.atomic_files import given_path
from .options import DATA_LOCATIONS, flat, is_interpolated, is_within, with_option
from .pretrained import PACKAGED

# The options that set locations on the command line; all entry points use the same names.
LOCATIONS = (*(f"dataset.{name}" for name in DATA_LOCATIONS), "backbone.weights")
_LOCATION = re.compile(
    rf"dataset\.(.+\.)?({'|'.join(DATA_LOCATIONS)})(\.(train|val|test))?|(model\.)?backbone\.weights|init"
)


def is_location(name: str) -> bool:
    """Return True if an option is a file location, such as ``dataset.root`` or its copy ``dataset.train.root``."""
    return _LOCATION.fullmatch(name) is not None


def located(config: DictConfig) -> DictConfig:
    """Return a configuration that does not depend on the working directory, from which a run can thus be resumed.

    Locations become absolute, and a file of mask values is replaced by its contents, because the classes of the masks
    must not change with a file that is edited later.
    """
    result = replaced(config)
    for name, value in flat(plain(config)).items():
        if is_location(name) and value not in (None, {}) and not is_interpolated(result, name):
            OmegaConf.update(result, name, absolute(value))
    values = OmegaConf.select(result, "dataset.values")
    if (mapping := read_file(values)) is not values:
        OmegaConf.update(result, "dataset.values", mapping)
    return result


def moved(config: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's configuration with its locations replaced by those on the command line.

    Args:
        config: the checkpoint's configuration.
        given: the options on the command line, without ``+`` or ``++``; those that are not locations are ignored.

    Raises:
        ValueError: the checkpoint has no such location; for example, ``dataset.root`` is set, but its data set has
            ``dataset.images`` and ``dataset.masks``, or a single folder is set for the folders of several splits, or
            the folder of one split for a single folder.
    """
    options = flat(config)
    for option, value in locations_in(given).items():
        part, _, key = option.partition(".")
        places = [
            name for name in options if is_location(name) and part in name.split(".") and name.endswith(f".{key}")
        ]
        if places:
            for place in places:
                config = with_option(config, place, absolute(value))
        elif (extended := _with_split(config, option, absolute(value))) != config:
            config = extended
        else:
            own = " and ".join(name for name in locations_in(options) if name.startswith(part))
            raise ValueError(
                f"{option}={value} does not apply to this checkpoint, "
                + (f"which uses {own}" if own else f"whose {part} reads no files")
            )
    return config


def locations_in(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return {option: location} for ``LOCATIONS``, in their order, with an entry for each split that has its own.

    Args:
        options: options by name, such as those of the command line; the values may be mappings.
    """
    named = flat(options)
    return {
        name: value
        for option in LOCATIONS
        for name, value in named.items()
        if is_within(name, option) and value not in (None, {})
    }


def _with_split(config: dict[str, Any], option: str, new: Any) -> dict[str, Any]:
    """Return a configuration in which an option such as ``dataset.images.val`` sets the folder of one split.

    The other splits keep their folders. If no folder is set, as in the configuration of a published network, the result
    has a folder for this split only. A single folder for all splits is left unchanged.
    """
    _, _, name = option.partition(".")
    kind, _, split = name.partition(".")

    def extended(node: dict[str, Any]) -> dict[str, Any]:
        result = {key: extended(value) if isinstance(value, dict) else value for key, value in node.items()}
        if split and kind in result and isinstance(result[kind], dict | None):
            result[kind] = {**(result[kind] or {}), split: new}
        return result

    if option.startswith("dataset.") and isinstance(config.get("dataset"), dict):
        return config | {"dataset": extended(config["dataset"])}
    return config


def absolute(value: Any) -> str | None:
    """Return a location as an absolute path; None and the names of packaged networks are returned unchanged."""
    return value if value is None or value in PACKAGED else str(given_path(value).absolute())
