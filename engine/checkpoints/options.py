"""Options by their dotted names, and the defaults of those that a checkpoint from earlier code lacks."""

import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from ...conf import CONF
from ..guards.setting_types import BOUNDS

CHECKED = (*BOUNDS, "optimizer.lr_factors", "recipe.monitor")  # options that the code reads itself, by name


def flat(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return {dotted name: value} for a plain configuration; lists and empty mappings are values."""
    return dict(_leaves(node, path))


def _leaves(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def text(options: Mapping[str, Any], name: str) -> str:
    """Return an option as in an override; "nothing" instead of its value if it is missing."""
    if name not in options:
        return f"{name}=nothing"
    value = options[name]
    return f"{name}={value if isinstance(value, str) else json.dumps(value, default=str)}"


def is_interpolated(config: DictConfig, name: str) -> bool:
    """Return True if an option takes its value from another one."""
    node: Any = config
    for key in name.split("."):
        if not isinstance(node, DictConfig) or key not in node:
            return False
        if OmegaConf.is_interpolation(node, key):
            return True
        node = node[key]
    return False


def is_given(name: str, given: Mapping[str, Any]) -> bool:
    """Return True if an option, or a part of it, is on the command line."""
    return any(f"{key}.".startswith(f"{name}.") for key in given)


def completed(
    saved: Mapping[str, Any], now: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a checkpoint's configuration with defaults for the options that it lacks, and {name: default} for those.

    The default of an argument of a class is that of its signature: what the class did before the option existed.

    Args:
        saved: the checkpoint's configuration.
        now: the command line's configuration, plain.
        given: the options on the command line; their values are not defaults.
    """
    lacking: dict[str, Any] = {}
    return _completed(saved, now, _defaults(now, given), "", lacking), lacking


def _completed(
    saved: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any], path: str, lacking: dict[str, Any]
) -> dict[str, Any]:
    made = dict(saved)
    target = made.get("_target_") if made.get("_target_") == now.get("_target_") else None
    for key, value in now.items():
        name = f"{path}{key}"
        if isinstance(made.get(key), Mapping) and isinstance(value, Mapping):
            made[key] = _completed(made[key], value, defaults, f"{name}.", lacking)
        elif key in made:
            continue
        elif name in defaults:
            made[key] = lacking[name] = defaults[name]
        elif key in defaults_of(target):
            made[key] = lacking[name] = defaults_of(target)[key]
    return made


def _defaults(now: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the options that the code reads itself: at the top level, or checked by name."""
    base: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    written = flat(base)
    read = dict(now) | {name: value for name, value in flat(now).items() if name in CHECKED}
    composed = {name: value for name, value in read.items() if not is_given(name, given)}
    return {name: value for name, value in (composed | written).items() if "${" not in str(written.get(name))}


@cache
def defaults_of(target: Any) -> dict[str, Any]:
    """Return the defaults of a class's or function's arguments, by name, as far as they are plain values."""
    if not isinstance(target, str):
        return {}
    try:
        parameters = inspect.signature(get_object(target)).parameters
    except Exception:  # a signature that cannot be read
        return {}
    found = {name: parameter.default for name, parameter in parameters.items()}
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    return {name: value for name, value in found.items() if isinstance(value, bool | int | float | str | list | None)}
