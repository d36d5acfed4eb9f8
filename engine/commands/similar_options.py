"""Name existing options that are similar to one that does not exist."""

import argparse
import difflib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...conf import CONF
from ...models.factory import compose_conf
from ..guards.setting_types import argument_types
from .arguments import parse_override

_MISSING = object()


def similar_options(overrides: Iterable[str], name: str) -> str:
    """Return a line for every override of an option that does not exist, with similar options; "" if all exist.

    Args:
        overrides: arguments that Hydra accepts, or has rejected.
        name: the file in ``conf/`` that the command starts from.
    """
    overrides = list(overrides)
    parsed = [override for override in map(parse_override, overrides) if override is not None]
    with suppress(HydraException, OmegaConfBaseException):
        configs = [compose_conf([*groups, *_own_files(overrides)], name) for groups in _choices(parsed)]
        options = list(dict.fromkeys(option for config in configs for option in _names(config)))
        unknown = [
            each.key_or_group for each in parsed if all(_is_unknown(each, options, config) for config in configs)
        ]
        return "\n".join(_of_argument(option, configs) or _line(option, options) for option in unknown)
    return ""


def _own_files(arguments: list[str]) -> list[str]:
    """Return an override that adds the user's own configuration folder, --config-dir, to Hydra's search path."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    folder = parser.parse_known_args(arguments)[0].config_dir
    return [] if folder is None else [f"hydra.searchpath=['file://{Path(folder).absolute()}']"]


def _choices(parsed: Iterable[Override]) -> list[list[str]]:
    """Return the overrides of groups; those of several runs of a sweep, so that each of its choices occurs once."""
    groups = [each for each in parsed if _is_group(each)]
    lines = [
        [f"{each.get_key_element()}={choice}" for choice in each.sweep_string_iterator()]
        if each.is_choice_sweep()
        else [each.input_line or ""]
        for each in groups
    ]
    number = max(map(len, lines), default=1)
    return [[choices[min(index, len(choices) - 1)] for choices in lines] for index in range(number)]


def _is_group(override: Override) -> bool:
    return (CONF / override.key_or_group).is_dir()


def _is_unknown(override: Override, options: list[str], config: DictConfig) -> bool:
    key = override.key_or_group
    if override.is_add() or override.is_force_add() or override.is_delete() or _is_group(override):
        return False
    if key in options or key.startswith(("hydra.", "hydra/")):
        return False
    # The names within a part that is defined elsewhere, as `backbone` is in `model`, are not listed.
    return OmegaConf.select(config, key, default=_MISSING, throw_on_missing=False) is _MISSING


def _names(config: DictConfig) -> Iterator[str]:
    """Yield the dotted names of all options."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key, value in node.items() if isinstance(node, dict) else ():
            if not str(key).startswith("_"):
                yield f"{prefix}{key}"
                yield from walk(value, f"{prefix}{key}.")

    return walk(OmegaConf.to_container(config), "")


def _of_argument(option: str, configs: Iterable[DictConfig]) -> str:
    """Return a line for an argument of a class that its file in ``conf/`` does not set; "" for anything else."""
    parent, _, name = option.rpartition(".")
    for config in configs:
        node = OmegaConf.select(config, parent) if parent else None
        target = node.get("_target_") if isinstance(node, DictConfig) else None
        if target is not None and name in argument_types(target):
            return f"{option} is an argument of {target} that conf/ leaves at its default: +{option}=VALUE sets it."
    return ""


def _line(option: str, options: list[str]) -> str:
    scored = sorted((-_similarity(option, each), each.count("."), each) for each in options)
    similar = [each for score, _, each in scored[:3] if score <= min(-0.75, scored[0][0] + 0.15)]
    shown = f": did you mean {' or '.join(similar)}?" if similar else "."
    return f"There is no option {option}{shown} --help lists all options; + cannot add one that nothing reads."


def _similarity(left: str, right: str) -> float:
    """Return how similar the last parts of two dotted names are, from 0 to 1, and more for options of one group."""
    (parent, _, name), (other_parent, _, other) = left.rpartition("."), right.rpartition(".")
    bonus = 0.0 if parent != other_parent else 0.25 if parent else 0.1
    return difflib.SequenceMatcher(None, name, other).ratio() + bonus
