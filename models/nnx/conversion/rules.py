"""Conversion of a torch module by a rule, with a check that its twin implements every setting of the module."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from flax import nnx

from ..layers import Twin

_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Rule(NamedTuple):
    """The rule that converts one class of torch modules.

    Conversion fails if a module has an attribute that ``make`` does not read and the rule does not list, unless the
    attribute is off: None, False or the identity.

    Attributes:
        make: the constructor of the twin, called with a :class:`Source` and a function that converts submodules.
        fixed: settings for which the twin supports a single value, by name.
        unused: names of settings that do not affect the output or that follow from the weights.
    """

    make: Callable[[Any, Twin], nnx.Module]
    fixed: Mapping[str, Any] = MappingProxyType({})
    unused: tuple[str, ...] = ()


class Source:
    """View of a torch module that records which attributes are read.

    Args:
        module: the torch module.

    Attributes:
        read_names: names of the attributes read so far.
    """

    def __init__(self, module: torch.nn.Module):
        self._module = module
        self.read_names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        self.read_names.add(name)
        return value

    def parts(self) -> dict[str, torch.nn.Module]:
        """Return all submodules by name and record them as read."""
        parts = dict(self._module.named_children())
        self.read_names.update(parts)
        return parts


def convert(module: torch.nn.Module, rule: Rule, twin: Twin) -> nnx.Module:
    """Convert ``module`` by ``rule``, and its submodules by ``twin``.

    Raises:
        ValueError: the module has a setting that the twin does not implement.
    """
    attributes = _attributes(module)
    for name, value in rule.fixed.items():
        if attributes.get(name, value) != value:
            raise _refusal(module, f"{name}={attributes[name]}, and JAX supports only {name}={value}")
    for name in _HOOKS:
        if vars(module)[name]:
            raise _refusal(module, "it has a forward hook")
    source = Source(module)
    converted = rule.make(source, twin)
    understood = source.read_names.union(rule.fixed, rule.unused)
    for name, value in attributes.items():
        if name not in understood and not _is_off(value):
            text = " ".join(str(value).split())
            raise _refusal(module, f"JAX does not support its {name}={text if len(text) < 100 else text[:97] + '...'}")
    return converted


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Return the settings, parameters, buffers and submodules of a module by name."""
    own = vars(module)
    settings = {name: value for name, value in own.items() if name not in _OF_EVERY_MODULE}
    return {**settings, **own["_parameters"], **own["_buffers"], **own["_modules"]}


def _is_off(value: Any) -> bool:
    return value is None or value is False or type(value) is torch.nn.Identity


def _refusal(module: torch.nn.Module, reason: str) -> ValueError:
    return ValueError(f"{type(module).__module__}.{type(module).__name__} has no JAX counterpart: {reason}")
