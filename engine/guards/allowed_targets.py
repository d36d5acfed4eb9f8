"""Restrict the code that the configuration in an untrusted checkpoint may reference.

Hydra calls whatever a ``_target_`` names. Each part of a checkpoint's configuration may therefore reference only
classes defined in specific packages of this project or in ``torch.optim``; a recipe may also reference the functions
in ``data`` that create its transform. The user may trust packages of their own, in which every part may reference
classes and functions. The configuration must also be plain: OmegaConf parses a string in place of a mapping as YAML and
treats a tuple as a list, and either could hide a target from this check.
"""

import os
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from hydra.utils import get_object

# Part of the configuration -> packages whose classes it may reference.
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
_TRUSTED = "CCNET_TRUSTED_PACKAGES"  # the environment variable with the user's own packages, separated by commas
_PROBLEM = "which checkpoints may not name, so those of this run could not be loaded"
_DEPTH = 16  # the project's own configurations are at most 6 levels deep; recursion fails near 100


def check_targets(config: dict[str, Any]) -> None:
    """Raise ValueError if a configuration contains a target that is not allowed, an interpolation or a non-plain value.

    Plain values are dicts with string or integer keys, lists, strings, numbers, booleans and None.
    """
    for part, node in config.items():
        if part in _PACKAGES and not isinstance(node, dict):
            raise ValueError(f"its config has {_shown(node)} for {part} instead of a mapping")
        for _, value in _leaves(node):
            if isinstance(value, str) and "${" in value:  # a resolver could read the environment
                raise ValueError(f"its config is not resolved: {part} contains {value!r}")
    for part, target in _untrusted(config):
        raise ValueError(
            f"its config names {_shown(target)} in {part}, which is not an allowed target there: allowed are "
            f"some classes of this project and of torch.optim, and your own packages, named in {_TRUSTED}"
        )


def check_loadable(config: dict[str, Any]) -> None:
    """Raise ValueError if a target does not exist, or :func:`check_targets` would refuse it in the run's checkpoints.

    Args:
        config: plain dicts and lists with interpolations resolved.
    """
    packages = {f"{part} uses {target}": _package_of(part, target) for part, target in _untrusted(config)}
    if packages:
        trusted = ",".join(dict.fromkeys([*_trusted_packages(), *packages.values()]))
        raise ValueError(
            f"{' and '.join(packages)}, {_PROBLEM}: if you trust this code, set the environment variable "
            f"{_TRUSTED}={trusted}, now and whenever you use the checkpoints"
        )


def _package_of(part: str, target: str) -> str:
    """Return the package to trust for `target`.

    Raises:
        ValueError: it does not exist, or another package defines it.
    """
    try:
        home = get_object(target).__module__.split(".")
    except Exception as error:  # it does not exist, or importing it fails
        raise ValueError(f"{part} uses {_shown(target)}, which cannot be loaded: {error}") from error
    shared = takewhile(lambda names: names[0] == names[1], zip(target.split(".")[:-1], home, strict=False))
    package = ".".join(name for name, _ in shared)
    if not package:
        raise ValueError(f"{part} uses {target}, {_PROBLEM}: name it by the module that defines it, {'.'.join(home)}")
    return package


def _trusted_packages() -> list[str]:
    return [package.strip() for package in os.environ.get(_TRUSTED, "").split(",") if package.strip()]


def _untrusted(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (part, target) for every target in the configuration that is not allowed there."""
    own = [(package, None) for package in _trusted_packages()]
    for part, node in config.items():
        allowed = [*((package, part) for package in _PACKAGES.get(part, ())), *own]
        for key, value in _leaves(node):
            if key == "_target_" and value is not None and not any(_defined_in(p, value, kind) for p, kind in allowed):
                yield part, value


def _leaves(node: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) for every value that is neither a mapping nor a list; list items get the list's key."""
    if depth > _DEPTH:
        raise ValueError(f"its config is nested more than {_DEPTH} levels deep")
    if type(node) is dict:
        for name, value in node.items():
            if not isinstance(name, (str, int)):  # the mask values in dataset.values are integers
                raise ValueError(f"its config has the key {_shown(name)}, which is neither a string nor a whole number")
            yield from _leaves(value, str(name), depth + 1)
    elif type(node) is list:
        for value in node:
            yield from _leaves(value, key, depth + 1)
    elif node is None or isinstance(node, (str, bool, int, float)):
        yield key, node
    else:
        raise ValueError(f"its config contains {_shown(node)}: only strings, numbers, lists and mappings are allowed")


def _defined_in(package: str, target: Any, part: str | None) -> bool:
    """Return whether ``package`` itself defines ``target``, rather than merely importing it.

    Args:
        package: the name of a package or module.
        target: the full name of an object.
        part: the part of the configuration, which may only reference classes and a recipe also transforms; None allows
            all functions, too.
    """
    if not isinstance(target, str) or not target.startswith(f"{package}."):
        return False
    try:
        named = get_object(target)
    except Exception:  # the name does not exist, or importing it fails
        return False
    transform = part == "recipe" and target.endswith("_transform")
    allowed = isinstance(named, type) or (callable(named) and (transform or part is None))
    return allowed and f"{getattr(named, '__module__', '')}.".startswith(f"{package}.")


def _shown(value: Any) -> str:
    """Return the first 80 characters of a value, followed by its type unless it is a string."""
    return f"{str(value)[:80]!r} ({type(value).__name__})" if not isinstance(value, str) else repr(value[:80])
