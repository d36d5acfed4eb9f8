"""Convert composed configurations to plain values, and set values that only become known at run time.

A composed configuration is never modified. Values that depend on the data set or a checkpoint, such as the number of
classes, are passed in and set on a copy.
"""

import copy
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain dicts and lists, with interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def replaced(config: DictConfig, **values: Any) -> DictConfig:
    """Return a copy of a configuration with `values` added or replaced.

    Interpolations such as ``${num_classes}`` resolve to the new values. A mapping replaces the entire node of the same
    name.
    """
    result = copy.deepcopy(config)
    with open_dict(result):
        result.update(values)
    return result


def as_list(value: Any) -> list[Any]:
    """Return the value of an option that takes one item or a list of them, as a list."""
    return list(value) if isinstance(value, ListConfig) else [value]
