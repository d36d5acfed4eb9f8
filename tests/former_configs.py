"""Configurations as runs wrote them before this project was the package `ccnet`."""

from ccnet.engine.guards.former_names import _PRESENT, _each_target, _renamed

_FORMER = {present: former for former, present in _PRESENT.items()}


def former_names(node):
    """Return a plain configuration with every `_target_` replaced by its former name."""
    return _each_target(node, lambda target: _renamed(target, _FORMER))
