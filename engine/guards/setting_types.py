"""Check the types and bounds of a configuration's values, to fail early with one message instead of a traceback.

Settings that train.py reads itself are checked against the bounds below, and the arguments of a node with a
``_target_`` against the type annotations of that class or function.
"""

import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object

_MOST = 2**31 - 1
Bounds = tuple[Any, float, float, bool]  # type, minimum, maximum, and whether the setting may be null
BOUNDS: dict[str, Bounds] = {  # of the settings of a run
    "seed": (int, -(2**63), 2**63 - 1, False),
    "num_workers": (int, 0, 1024, False),
    "log_every": (int, 1, _MOST, False),
    "save_every": (int, 1, _MOST, True),
    "collective_timeout": (float, 1, 1e6, False),
    "accumulate": (int, 1, _MOST, False),
    "frozen_stages": (int, 0, 4, False),
    "norm_eval": (bool, 0, 1, False),
    "grad_checkpointing": (bool, 0, 1, False),
    "ema": (float, 1e-6, 1 - 1e-9, True),
    "clip_norm": (float, 1e-12, 1e12, True),
    "skip_nonfinite": (int, 0, _MOST, False),
    "skip_broken": (int, 0, _MOST, False),
    "bf16": (bool, 0, 1, False),
    "channels_last": (bool, 0, 1, False),
    "compile": (bool, 0, 1, False),
    "recipe.max_iters": (int, 1, _MOST, False),
    "recipe.batch_size": (int, 1, _MOST, False),
    "recipe.base_batch_size": (int, 1, _MOST, True),
    "recipe.val_every": (int, 1, _MOST, False),
    "recipe.epochs": (int, 1, _MOST, True),
    "recipe.patience": (int, 1, _MOST, True),
    "recipe.lr": (float, 0, 1e6, False),
    "recipe.weight_decay": (float, 0, 1e6, False),
    "optimizer.norm_weight_decay": (float, 0, 1e6, True),
    "dataset.frames": (int, 1, 1024, False),
    "published.recurrence": (int, 1, 64, False),
    "published.align_corners": (bool, 0, 1, True),
}
_PARTS = ("model", "backbone", "task", "dataset", "recipe", "protocol", "loss", "optimizer", "logger")
# Nodes that must have a ``_target_`` and must not be partial.
_MADE = ("model", "task", "loss", "protocol", "optimizer.algorithm", "optimizer.schedule")
_FILLED_IN = ("num_classes",)  # arguments that are null until the data set is known
_HYDRA = {"_args_": list[Any], "_convert_": str, "_partial_": bool, "_recursive_": bool}
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
_MISSING = object()


def check_settings(config: Mapping[str, Any], *, from_checkpoint: bool = False) -> None:
    """Raise ValueError, naming the setting, if a value has the wrong type or is out of bounds.

    Args:
        config: plain dicts and lists with interpolations resolved; settings may be missing, as in a checkpoint's
            configuration.
        from_checkpoint: whether an argument of a class may be null or unknown to it, as in checkpoints of earlier code,
            which left it to the class to reject them.
    """
    check_bounds(config, BOUNDS)
    _check_recipe(config)
    _check_structure(config)
    for name, node in _nodes(config):
        _check_arguments(name, node, from_checkpoint=from_checkpoint)


def check_bounds(config: Mapping[str, Any], bounds: Mapping[str, Bounds]) -> None:
    """Raise ValueError, naming the setting, if a setting in ``bounds`` has the wrong type or is out of bounds."""
    for name, (kind, least, most, optional) in bounds.items():
        value = _select(config, name)
        if value is _MISSING or (optional and value is None):
            continue
        if not (_fits(value, kind) and all(least <= part <= most for part in _parts(value))):
            interval = "" if kind is bool else f" from {least} to {most}"
            raise ValueError(
                f"{name} is {_shown(value)}, but must be {_described(kind)}{interval}{' or null' if optional else ''}"
            )


def _check_recipe(config: Mapping[str, Any]) -> None:
    """Raise ValueError if the learning rates of the parts or the monitored score are not what the code expects."""
    factors = _select(config, "optimizer.lr_factors")
    if factors not in (_MISSING, None) and not (
        isinstance(factors, Mapping) and all(_fits(value, float) and value > 0 for value in factors.values())
    ):
        raise ValueError(
            f"optimizer.lr_factors is {_shown(factors)}, but must map parts of the network to numbers above 0, such as "
            "{backbone: 0.1}, or be null; frozen_stages=N leaves stages of the backbone untrained"
        )
    monitor = _select(config, "recipe.monitor")
    if monitor not in (_MISSING, None) and not isinstance(monitor, str):
        raise ValueError(f"recipe.monitor is {_shown(monitor)}, but must be the name of a score or null")


def _check_structure(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless the parts of a configuration are mappings, with a ``_target_`` where one is needed."""
    for name in _PARTS:
        if not isinstance(config.get(name, {}), Mapping):
            raise ValueError(f"{name} is {_shown(config[name])}, but must be a mapping, as in conf/{name}")
    if _select(config, "recipe.train_transform") is None:
        raise ValueError("recipe.train_transform is null, but must be set, as in conf/recipe")
    for name in _MADE:
        node = _select(config, name)
        if node is not _MISSING and (not _is_made(node) or node.get("_partial_")):
            raise ValueError(f"{name} is {_shown(node)}, but must be a mapping with a _target_ and no _partial_")


def _check_arguments(name: str, node: Mapping[str, Any], *, from_checkpoint: bool) -> None:
    """Raise ValueError unless the class in the ``_target_`` of a node has its arguments and their values fit."""
    hints = argument_types(node["_target_"]) | _HYDRA
    taken = _argument_names(node["_target_"])
    for argument, value in node.items():
        if not from_checkpoint and taken is not None and argument not in (*taken, *_HYDRA, "_target_"):
            takes = f"takes {', '.join(taken)}" if taken else "takes no arguments"
            raise ValueError(
                f"{name}.{argument} is {_shown(value)}, but {node['_target_']} {takes}: leave {name}.{argument} out, "
                f"or remove it with ~{name}.{argument} if a file in conf/ sets it"
            )
        hint = hints.get(argument, Any)
        may_be_null = argument in _FILLED_IN or (from_checkpoint and argument not in _HYDRA)
        if not (_fits(value, hint) or (value is None and may_be_null)):
            raise ValueError(f"{name}.{argument} is {_shown(value)}, but must be {_described(hint)}")


def _select(config: Any, name: str) -> Any:
    """Return the value of a dotted name, or _MISSING."""
    for key in name.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return _MISSING
        config = config[key]
    return config


def _nodes(node: Any, name: str = "") -> Iterator[tuple[str, Mapping]]:
    """Yield (dotted name, mapping) for every node that has a ``_target_``."""
    if isinstance(node, Mapping):
        if "_target_" in node and not isinstance(node["_target_"], str | None):
            raise ValueError(f"{name}._target_ is {_shown(node['_target_'])}, but must be the name of a class")
        if node.get("_target_") is not None:
            yield name, node
        for key, value in node.items():
            yield from _nodes(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _nodes(value, f"{name}[{index}]")


def argument_types(target: str) -> dict[str, Any]:
    """Return {argument: annotation}, including those of base classes; empty if they cannot be read."""
    try:
        found = get_object(target)
        makers = [kind.__init__ for kind in found.__mro__] if isinstance(found, type) else [found]
        hints = {}
        for maker in reversed(makers):
            if inspect.isfunction(maker):
                hints |= get_type_hints(maker)
        return hints
    except Exception:  # instantiating the target raises a clearer error
        return {}


def _argument_names(target: str) -> list[str] | None:
    """Return the names of the arguments of a class or function; None if it takes any, or they cannot be read."""
    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except Exception:  # instantiating the target raises a clearer error
        return None
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    return [each.name for each in parameters if each.kind is not each.VAR_POSITIONAL]


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a plain value matches a type annotation. Unknown annotations match any value."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:  # before the other checks, because Any is a class since Python 3.11
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in inner)
    if hint is bool or hint is str:
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300
    if hint is type(None):
        return value is None
    if hint is Path:
        return isinstance(value, str)
    if origin in (list, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(part, inner[0]) for part in value)
    if _is_fixed_list(hint):
        return isinstance(value, Sequence) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and (_is_made(value) or all(_fits(part, inner[1]) for part in value.values()))
    if origin is Callable or isinstance(hint, type):
        return value == {} or _is_made(value)  # an empty mapping stands for no object
    return True


def _is_fixed_list(hint: Any) -> bool:
    """Return whether a type annotation is that of a list of fixed length."""
    return get_origin(hint) is tuple and ... not in get_args(hint)


def _is_made(value: Any) -> bool:
    """Return whether a value is a mapping that Hydra would instantiate."""
    return isinstance(value, Mapping) and value.get("_target_") is not None


def _described(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        lists = [part for part in inner if _is_fixed_list(part)]
        others = [_described(part) for part in inner if part not in lists]
        return " or ".join(dict.fromkeys([*_described_lists(lists), *others]))
    if origin in (list, Sequence):
        return f"a list in which each item is {_described(inner[0])}"
    if _is_fixed_list(hint):
        return _described_lists([hint])[0]
    if origin in (dict, Mapping):
        return f"a mapping in which each value is {_described(inner[1])}"
    return _NAMES.get(hint, "a path" if hint is Path else "anything" if hint is Any else "a mapping with a _target_")


def _described_lists(hints: Sequence[Any]) -> list[str]:
    """Describe lists of fixed length, those of the same items together."""
    lengths: dict[str, list[str]] = {}
    for hint in hints:
        items = get_args(hint)
        lengths.setdefault(_described(items[0]), []).append(str(len(items)))
    return [f"a list of {' or '.join(each)} items, each {item}" for item, each in lengths.items()]


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) else [value]


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return repr(value) if not isinstance(value, float) or math.isfinite(value) else str(value)
