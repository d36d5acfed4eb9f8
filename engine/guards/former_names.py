"""Translate ``_target_`` names used before this project became a package to the current ones."""

from collections.abc import Callable, Mapping
from typing import Any

# Former -> current name, for modules and single classes; the longest matching prefix applies.
_PRESENT = {
    "data": "ccnet.data.sets",
    "data.transforms": "ccnet.data.transforms",
    "engine.protocols": "ccnet.engine.evaluation.protocols",
    "engine.schedule": "ccnet.engine.training.lr_schedules",
    "engine.tasks": "ccnet.engine.evaluation.tasks",
    "engine.wandb_run": "ccnet.engine.training.wandb_logger",
    "losses.GivenLosses": "ccnet.losses.DetectionLoss",
    "losses": "ccnet.losses",
    "models.context.lines": "ccnet.models.context.horizontal_vertical",
    "models.heads.direct.DirectHead": "ccnet.models.heads.pyramid.PyramidHead",
    "models": "ccnet.models",
}


def present_names(node: Any) -> Any:
    """Return a plain configuration with every `_target_` replaced by its current name."""
    return _each_target(node, lambda target: _renamed(target, _PRESENT))


def _each_target(node: Any, rename: Callable[[str], str]) -> Any:
    if isinstance(node, dict):
        return {
            key: rename(value) if key == "_target_" and isinstance(value, str) else _each_target(value, rename)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_each_target(value, rename) for value in node]
    return node


def _renamed(target: str, names: Mapping[str, str]) -> str:
    for name in sorted(names, key=len, reverse=True):
        if target == name or target.startswith(f"{name}."):
            return names[name] + target.removeprefix(name)
    return target
