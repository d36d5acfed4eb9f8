"""Command-line overrides, parsed by Hydra."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from ...conf import CONF

# Options for how a run is executed and what it may skip; they are not part of its identity.
EXECUTION = (
    "resume", "device", "num_workers", "log_every", "save_every", "logger", "skip_broken", "skip_nonfinite",
    "collective_timeout", "allow_env", "grad_checkpointing",
)  # fmt: skip

_called_with: ContextVar[Sequence[str] | None] = ContextVar("called_with", default=None)


def given_overrides() -> dict[str, Any]:
    """Return this run's overrides as {option: value}; empty if neither Hydra nor a Python call passed any."""
    called = _called_with.get()
    if called is None:
        called = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return parse_overrides(called)


def called_from_python() -> bool:
    """Return True within :func:`as_command_line`: a Python program, such as a notebook, has started this run."""
    return _called_with.get() is not None


@contextmanager
def as_command_line(overrides: Sequence[str]) -> Iterator[None]:
    """Treat overrides passed in a Python call as command-line overrides for the duration of the block."""
    token = _called_with.set(overrides)
    try:
        yield
    finally:
        _called_with.reset(token)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse ``["+experiment=fcn", "recipe.lr=1e-2"]`` into ``{"+experiment": "fcn", "recipe.lr": 0.01}``."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.get_key_element(): override.value() for override in parsed}


def check_overrides(overrides: Iterable[str]) -> None:
    """Raise ValueError for an option without a value, and for a config group whose value is not a name.

    Hydra accepts the former, although an empty path means the current folder, and prints a traceback for the latter. It
    reports overrides that it cannot parse itself.
    """
    for override in overrides:
        option, equals, value = override.partition("=")
        if not equals or option.startswith("-"):
            continue
        if value.strip() in ("", "''", '""'):
            raise ValueError(
                f"{option}= has no value: set {option}=VALUE, or remove it. If the value comes from a shell variable, "
                "that variable is empty or not set"
            )
        group = CONF / option.lstrip("+").partition("@")[0]
        if group.is_dir() and not _chooses_config(override):
            names = (str(path.relative_to(group).with_suffix("")) for path in sorted(group.rglob("*.yaml")))
            raise ValueError(f"{override}: {option} must be the name of a configuration, {option}={'|'.join(names)}")


def _chooses_config(override: str) -> bool:
    """Return False if Hydra would raise a TypeError or ValueError for the value of a config group.

    Names, lists of names and sweeps select configurations; a mapping changes settings of the selected one.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return True
    value = parsed.value()
    names = value if isinstance(value, list) else [value]
    return parsed.is_sweep_override() or isinstance(value, dict) or all(isinstance(name, str) for name in names)


def in_sweep() -> bool:
    """Return True if this run is part of a sweep."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")
