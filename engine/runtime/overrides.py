"""Command-line overrides, parsed by Hydra."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from ...conf import CONF

# Options for how a run is executed and what it may skip; they are not part of its identity.
EXECUTION = (
    "resume", "device", "num_workers", "log_every", "save_every", "logger", "skip_broken", "skip_nonfinite",
    "collective_timeout", "allow_env", "grad_checkpointing",
)  # fmt: skip

_COMPOSED = ("[", "{", "'", '"')  # the first characters of lists, mappings and quoted strings
# An option that may be a mapping, or an entry of it.
_ENTRY = re.compile(
    r"\+{0,2}(dataset\.(?:images|masks|lists|values)|optimizer\.lr_factors)(?:\.([^=~@]+))?=(.*)", re.DOTALL
)

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


def accepted(overrides: Iterable[str]) -> list[str]:
    """Return overrides in a form that Hydra accepts; those that remain invalid are kept, for Hydra to report.

    Values outside Hydra's grammar, as in ``input=straße.jpg`` or ``input=IMG(1).jpg``, are quoted. Entries of an option
    that may be a mapping, as in ``dataset.images.train=A dataset.images.val=B``, are joined to
    ``dataset.images={train:'A',val:'B'}``, because Hydra rejects new keys of an option.
    """
    made: list[str] = []
    places: dict[str, int] = {}
    for override in map(_quoted, overrides):
        option, entries = _entries(override)
        if entries and option in places:
            made[places[option]] = f"{made[places[option]][:-1]},{entries}}}"
            continue
        if entries:
            places[option] = len(made)
        made.append(f"{option}={{{entries}}}" if entries else override)
    return made


def _entries(override: str) -> tuple[str, str]:
    """Return the option that an override sets, and the entries of the mapping in it as text; "" if it has none."""
    parsed, match = _parsed(override), _ENTRY.fullmatch(override)
    if parsed is None or parsed.is_sweep_override() or match is None:
        return override, ""
    option, key, text = match.groups()
    value = parsed.value()
    if key is None:
        return option, text.strip()[1:-1].strip() if isinstance(value, dict) else ""
    return option, f"{key}:{_string(value) if isinstance(value, str) else text}"


def _quoted(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or override.startswith("-") or value.startswith(_COMPOSED) or "${" in value or _parsed(override):
        return override
    made = f"{key}={_string(value)}"
    return made if _parsed(made) else override


def _string(value: str) -> str:
    """Return a value as a quoted string of Hydra's grammar."""
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


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
    parsed = _parsed(override)
    if parsed is None:
        return True
    value = parsed.value()
    names = value if isinstance(value, list) else [value]
    return parsed.is_sweep_override() or isinstance(value, dict) or all(isinstance(name, str) for name in names)


def in_sweep() -> bool:
    """Return True if this run is part of a sweep."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")
