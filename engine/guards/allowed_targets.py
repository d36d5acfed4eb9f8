"""Which code the configuration in an untrusted checkpoint may name.

Hydra calls whatever a ``_target_`` names. So each part of a checkpoint's configuration may only name classes that one
package of this project, or torch's optimisers, define themselves; a recipe may also name the functions of ``data``
that make its transform. The configuration must be plain besides: OmegaConf parses a string in place of a mapping as
YAML and takes a tuple for a list, and either could hide a name from this check.
"""

from collections.abc import Iterator
from typing import Any

from hydra.utils import get_object

# Part of the configuration -> packages whose classes it may name.
_PACKAGES = {
    "model": ("ccnet.models",),
    "backbone": ("ccnet.models",),
    "task": ("ccnet.engine.evaluation.tasks",),
    "dataset": ("ccnet.data",),
    "recipe": ("ccnet.data",),
    "protocol": ("ccnet.engine.evaluation.protocols",),
    "loss": ("ccnet.losses",),
    "optimizer": ("torch.optim", "ccnet.engine.training.lr_schedules"),
    "logger": ("ccnet.engine.training.wandb_logger",),
}
_DEPTH = 16  # the project's own reach 6; recursion fails near 100


def check_targets(config: dict[str, Any]) -> None:
    """Raise ValueError if a configuration names other code, holds an interpolation, or is not plain."""
    for part, node in config.items():
        if part in _PACKAGES and not isinstance(node, dict):
            raise ValueError(f"its config has {_shown(node)} for {part}, where a mapping belongs")
        for key, value in _leaves(node):
            if isinstance(value, str) and "${" in value:  # a resolver could read the environment
                raise ValueError(f"its config is not resolved: {part} holds {value!r}")
            if key == "_target_" and value is not None and not _trusted(part, value):
                raise ValueError(
                    f"its config names {_shown(value)} in {part}, where this project defines no such thing"
                )


def _trusted(part: str, target: Any) -> bool:
    return any(_defined_in(package, target, part) for package in _PACKAGES.get(part, ()))


def _leaves(node: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) for every value that is neither a mapping nor a list; list items get the list's key."""
    if depth > _DEPTH:
        raise ValueError(f"its config is nested more than {_DEPTH} levels deep")
    if type(node) is dict:
        for name, value in node.items():
            if not isinstance(name, str):
                raise ValueError(f"its config has the key {_shown(name)}, which is no text")
            yield from _leaves(value, name, depth + 1)
    elif type(node) is list:
        for value in node:
            yield from _leaves(value, key, depth + 1)
    elif node is None or isinstance(node, (str, bool, int, float)):
        yield key, node
    else:
        raise ValueError(f"its config holds {_shown(node)}: only texts, numbers, lists and mappings belong there")


def _defined_in(package: str, target: Any, part: str) -> bool:
    """Return whether ``package`` defines the class or transform ``target``, and does not merely import it."""
    if not isinstance(target, str) or not target.startswith(f"{package}."):
        return False
    try:
        found = get_object(target)
    except Exception:  # there is no such name, or importing it fails
        return False
    allowed = isinstance(found, type) or (part == "recipe" and callable(found) and target.endswith("_transform"))
    return allowed and f"{getattr(found, '__module__', '')}.".startswith(f"{package}.")


def _shown(value: Any) -> str:
    """Return the first 80 characters of a value, and its type unless it is a string."""
    return f"{str(value)[:80]!r} ({type(value).__name__})" if not isinstance(value, str) else repr(value[:80])
