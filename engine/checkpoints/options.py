"""Access options by dotted name, and fill in the defaults of options that an older checkpoint lacks."""

import inspect
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from ...conf import CONF
from ..guards.setting_types import BOUNDS

CHECKED = (*BOUNDS, "optimizer.lr_factors", "recipe.monitor")  # options that the code reads directly, by name
DATA_LOCATIONS = ("root", "images", "masks", "lists")  # options of a data set that are file locations


def flat(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return {dotted name: value} for a plain configuration below `path`; lists and empty mappings are leaves."""
    options: dict[str, Any] = {}
    for key, value in node.items():
        options |= flat(value, f"{path}{key}.") if isinstance(value, Mapping) and value else {f"{path}{key}": value}
    return options


def text(options: Mapping[str, Any], name: str) -> str:
    """Format an option as an override, NAME=VALUE; the value of a missing option is "nothing"."""
    if name not in options:
        return f"{name}=nothing"
    value = options[name]
    return f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}"


def with_option(node: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return a copy of a plain configuration in which the option of a dotted name has another value."""
    key, _, inside = name.partition(".")
    return {**node, key: with_option(node[key], inside, value) if inside else value}


def without_pretrained(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain ``model`` node with a backbone that neither downloads nor reads pretrained weights.

    A node without a backbone is returned unchanged; building it raises an error that says what is missing, unless its
    class needs none.
    """
    backbone = model.get("backbone")
    if not isinstance(backbone, Mapping):
        return dict(model)
    return {**model, "backbone": {**backbone, "pretrained": False, "weights": None}}


def is_interpolated(config: DictConfig, name: str) -> bool:
    """Return True if an option, or a node that contains it, is an interpolation."""
    node: Any = config
    for key in name.split("."):
        if not isinstance(node, DictConfig) or key not in node:
            return False
        if OmegaConf.is_interpolation(node, key):
            return True
        node = node[key]
    return False


def is_within(name: str, *options: str) -> bool:
    """Return True if ``name`` is one of the options or within one, as ``dataset.root`` is within ``dataset``."""
    return f"{name}.".startswith(tuple(f"{option}." for option in options))


def is_given(name: str, given: Mapping[str, Any]) -> bool:
    """Return True if an option, or a part of it, is on the command line."""
    return any(is_within(key, name) for key in given)


def completed(
    saved: Mapping[str, Any], now: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add defaults for missing options to a checkpoint's configuration; return it and {name: default} of those added.

    The default for an argument of a class is taken from its signature, which reproduces what the class did before the
    option existed.

    Args:
        saved: the checkpoint's configuration.
        now: the plain configuration of the current command.
        given: the options on the command line; their values are not used as defaults.
    """
    lacking: dict[str, Any] = {}
    return _completed(saved, now, _defaults(now, given), "", lacking), lacking


def _completed(
    saved: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any], path: str, lacking: dict[str, Any]
) -> dict[str, Any]:
    result = dict(saved)
    target = saved.get("_target_") if saved.get("_target_") == now.get("_target_") else None
    for key, value in now.items():
        name = f"{path}{key}"
        if isinstance(result.get(key), Mapping) and isinstance(value, Mapping):
            result[key] = _completed(result[key], value, defaults, f"{name}.", lacking)
        elif key in result:
            continue
        elif name in defaults:
            result[key] = lacking[name] = defaults[name]
        elif key in defaults_of(target):
            result[key] = lacking[name] = defaults_of(target)[key]
    return result


def _defaults(now: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the options that the code reads directly: those at the top level or in ``CHECKED``."""
    in_file = _defaults_in_file()
    read = dict(now) | {name: value for name, value in flat(now).items() if name in CHECKED}
    composed = {name: value for name, value in read.items() if not is_given(name, given)}
    return {name: value for name, value in (composed | in_file).items() if "${" not in str(in_file.get(name))}


@cache
def _defaults_in_file() -> dict[str, Any]:
    base: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    return flat(base)


@cache
def defaults_of(target: Any) -> dict[str, Any]:
    """Return {argument: default} for the arguments of a class or function whose defaults are plain values."""
    if not isinstance(target, str):
        return {}
    try:
        parameters = inspect.signature(get_object(target)).parameters
    except Exception:  # not every signature can be read
        return {}
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    return {
        name: value for name, value in defaults.items() if isinstance(value, bool | int | float | str | list | None)
    }
