"""Find options on the command line that would have no effect, because nothing reads them."""

import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...conf import CONF
from ...models.factory import compose_conf
from ..checkpoints.options import CHECKED, flat, is_within
from ..guards.settings import plain, replaced
from ..runtime.overrides import given_options, given_overrides
from .similar_options import similar_options

_DETERMINED = {"num_classes": "the data set", "inherited_data": "the initial weights"}
_SOURCES = ("backbone", "dataset", "recipe")  # parts whose options act where other options refer to them
# Options that the code reads by name even if the chosen files lack them, and mappings with entries of any name.
_READ = (
    *(option for option in CHECKED if "." in option), "dataset.class_weights", "machines", "tune.ranges",
    "train.settings",
)  # fmt: skip


def refuse_unread(config: DictConfig, name: str) -> None:
    """Raise ValueError for options that the command determines itself, or that a ``+`` adds and nothing reads.

    Options in a user's own configuration files are not examined, only those on the command line.

    Args:
        config: the composed configuration.
        name: the file in ``conf/`` that the command starts from.
    """
    for option in _DETERMINED.keys() & given_options():
        raise ValueError(f"{option} cannot be set, because it follows from {_DETERMINED[option]}: remove it")
    overrides = given_overrides()
    added = {option.lstrip("+"): value for option, value in overrides.items() if option.startswith("+")}
    for group in _unread_groups(config, added, name):
        raise ValueError(f"+{group}={added[group]} adds settings that this command does not read: remove it")
    for option in _unread(config, added):
        # Without the +, it is reported like any other unknown option; "" if ++ has set one that exists.
        groups = [f"{key}={value}" for key, value in overrides.items() if isinstance(value, str | list)]
        if hint := similar_options([*groups, f"{option}=null"], name):
            raise ValueError(hint)
        if f"+{option}" in overrides:
            raise ValueError(f"+{option} adds an option that nothing reads: remove it")


def without_effect(config: DictConfig) -> list[str]:
    """Return a line for every option on the command line that nothing reads in this combination of settings."""
    options = given_options()
    given = {option: value for option, value in options.items() if option.partition(".")[0] in _SOURCES}
    unused = [option for option in options if option.startswith("published.") and config.init is None]
    return [
        f"{option} has no effect, because no other setting of this run uses it"
        for option in (*_unread(config, given), *unused)
    ]


def _unread_groups(config: DictConfig, added: Mapping[str, Any], name: str) -> list[str]:
    """Return the added config groups whose part the file `name` lacks, such as `model` for export.py.

    Hydra itself proposes to add them if they are set without ``+``.
    """
    groups = [option for option in added if (CONF / option).is_dir() and option.partition("/")[0] in config]
    if not groups or not (CONF / f"{name}.yaml").is_file():
        return []
    own = compose_conf([], name)
    return [option for option in groups if option.partition("/")[0] not in own]


def _unread(config: DictConfig, given: Mapping[str, Any]) -> list[str]:
    """Return the given options that no class takes as an argument, no other option refers to, and ``_READ`` lacks."""
    if not given:
        return []
    from ..checkpoints.locations import LOCATIONS  # takes a while, as it loads NumPy

    names = [name for name in flat(given) if _is_plain(config, name) and not is_within(name, *_READ, *LOCATIONS)]
    marks = {name: f"<option {index}>" for index, name in enumerate(names)}
    marked = replaced(config)
    for name, mark in marks.items():
        OmegaConf.update(marked, name, mark)
    try:
        text = json.dumps(plain(marked), default=str)
    except OmegaConfBaseException:  # a resolver that does not take the mark has read the option
        return []
    return [name for name, mark in marks.items() if text.count(mark) == 1]


def _is_plain(config: DictConfig, name: str) -> bool:
    """Return True if an option exists and is not an argument of a node's class, which is checked elsewhere.

    Those of `backbone` count as plain: they are arguments only where a network refers to them.
    """
    node: Any = config
    keys = name.split(".")
    for index, key in enumerate(keys):
        is_plain = OmegaConf.is_dict(node) and (node.get("_target_") is None or keys[:index] == ["backbone"])
        if not is_plain or key not in node or OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            return False
        node = node[key]
    return not OmegaConf.is_dict(node)
