"""Composed configurations as plain values, with what is found out after they are composed.

A composed configuration is never assigned to. What only a data set or a checkpoint can tell, such as the number of
classes, comes in as a value.
"""

import copy
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict


def plain(config: DictConfig, **found_later: Any) -> dict[str, Any]:
    """Return a configuration as resolved dicts and lists, with ``found_later`` in place of its own values."""
    return cast(dict[str, Any], OmegaConf.to_container(replaced(config, **found_later), resolve=True))


def replaced(config: DictConfig, **found_later: Any) -> DictConfig:
    """Return a copy of a configuration with ``found_later`` in place of its own values.

    Interpolations, such as ``${num_classes}``, give the new values; a mapping replaces the node of that name as a
    whole.
    """
    made = copy.deepcopy(config)
    with open_dict(made):
        for name, value in found_later.items():
            made[name] = value
    return made
