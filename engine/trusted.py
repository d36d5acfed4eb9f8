"""What the configuration in a checkpoint may name.

Hydra calls whatever a ``_target_`` says, and a checkpoint may come from a stranger. So each part of its
configuration may only name classes and functions that this project, or torch's optimisers, define themselves.
"""

from collections.abc import Iterator
from typing import Any

from hydra.utils import get_object

# Part of the configuration -> packages that may define what it names.
_PACKAGES = {
    "model": ("models",),
    "backbone": ("models",),
    "task": ("engine.tasks",),
    "dataset": ("data",),
    "recipe": ("data",),
    "protocol": ("engine.protocols",),
    "loss": ("losses",),
    "optimizer": ("torch.optim", "engine.schedule"),
    "logger": ("engine",),
}


def check_config(config: dict[str, Any]) -> None:
    """Raise ValueError if ``config`` names anything else, or holds an interpolation."""
    for part, node in config.items():
        for key, value in _leaves(node):
            if isinstance(value, str) and "${" in value:  # could read the environment
                raise ValueError(f"its config is not resolved: {part} holds {value!r}")
            if key == "_target_" and value is not None and not _trusted(part, value):
                raise ValueError(f"its config names {value!r} in {part}, which this project does not define there")


def _trusted(part: str, target: Any) -> bool:
    return any(_defined_in(package, target) for package in _PACKAGES.get(part, ()))


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, key)
    else:
        yield key, node


def _defined_in(package: str, target: Any) -> bool:
    """Whether ``target`` lies in ``package`` and is no foreign object that one of its modules imports."""
    if not isinstance(target, str) or not target.startswith(f"{package}."):
        return False
    try:
        found = get_object(target)
    except Exception:  # no such name
        return False
    return callable(found) and f"{getattr(found, '__module__', '')}.".startswith(f"{package}.")
