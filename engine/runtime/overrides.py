"""The overrides of this run, and whether it is part of a sweep."""

from collections.abc import Generator, Sequence
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


def given_options() -> dict[str, Any]:
    """Return this run's overrides as {option: value}, without the ``+`` or ``++`` that may precede an option."""
    return {name.lstrip("+"): value for name, value in given_overrides().items()}


def called_from_python() -> bool:
    """Return True within :func:`as_command_line`: a Python program, such as a notebook, has started this run."""
    return _called_with.get() is not None


@contextmanager
def as_command_line(overrides: Sequence[str]) -> Generator[None]:
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


def sweep_job() -> int | None:
    """Return the index of this run in its sweep; None if it is not part of a sweep."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(job := HydraConfig.get().job, "num"):
        return None
    return job.num


def in_sweep() -> bool:
    """Return True if this run is part of a sweep."""
    return sweep_job() is not None
