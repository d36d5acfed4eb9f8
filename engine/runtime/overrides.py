"""Command-line overrides, parsed by Hydra."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

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


def refuse_empty(overrides: Iterable[str]) -> None:
    """Raise ValueError for an option without a value; an empty path would mean the current folder."""
    for override in overrides:
        option, equals, value = override.partition("=")
        if equals and not option.startswith("-") and value.strip() in ("", "''", '""'):
            raise ValueError(
                f"{option}= has no value: set {option}=VALUE, or remove it. If the value comes from a shell variable, "
                "that variable is empty or not set"
            )


def in_sweep() -> bool:
    """Return True if this run is part of a sweep."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")
