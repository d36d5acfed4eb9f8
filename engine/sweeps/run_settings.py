"""Compare the runs of a sweep by their overrides: group those of the same setting, and name what differs."""

from collections.abc import Callable, Sequence
from typing import Any

from ..runtime.overrides import EXECUTION

Run = dict[str, Any]  # the content of a result.json
Overrides = dict[str, Any]  # {option: value}


def comparable(runs: list[Run]) -> list[Run]:
    """Return the runs with comparable overrides, although several commands may have added to the sweep.

    Options are listed in one order. Options for how a run is executed, such as ``resume=auto``, are omitted unless all
    runs have them. A failed run is omitted if another run with the same overrides has succeeded.
    """
    given = [{bare_name(option) for option in run["overrides"]} for run in runs]
    not_in_all = set.union(*given) - set.intersection(*given)
    omitted = {option for option in not_in_all if option.partition(".")[0] in EXECUTION}
    order = dict.fromkeys(option for run in runs for option in run["overrides"] if bare_name(option) not in omitted)
    made = [
        run | {"overrides": {key: run["overrides"][key] for key in order if key in run["overrides"]}} for run in runs
    ]
    succeeded = {_setting(run["overrides"]) for run in made if "error" not in run}
    return [run for run in made if "error" not in run or _setting(run["overrides"]) not in succeeded]


def _setting(overrides: Overrides) -> tuple[tuple[str, str], ...]:
    """Return the overrides in a hashable form."""
    return tuple((option, _text(value)) for option, value in overrides.items())


def successful(runs: list[Run]) -> list[Run]:
    """Return the runs that have a score."""
    return [run for run in runs if "error" not in run]


def by_setting(runs: list[Run]) -> list[tuple[Overrides, list[Run]]]:
    """Group runs that differ only in the seed, as (overrides without the seed, runs)."""
    groups: dict[tuple, tuple[Overrides, list[Run]]] = {}
    for run in runs:
        setting = without(run["overrides"], "seed")
        groups.setdefault(_setting(setting), (setting, []))[1].append(run)
    return list(groups.values())


def without(overrides: Overrides, *options: str) -> Overrides:
    """Return the overrides of all other options."""
    return {option: value for option, value in overrides.items() if bare_name(option) not in options}


def bare_name(option: str) -> str:
    """Return an option's name without the ``+`` that adds it to the configuration."""
    return option.lstrip("+")


def setting_names(settings: list[tuple[Overrides, list[Run]]], text: Callable[[Any], str] | None = None) -> list[str]:
    """Name each setting by its options; "all seeds" if only the seed varies, "default" if it has none."""
    if len(settings) == 1 and len(settings[0][1]) > 1:
        return ["all seeds"]
    return [name or "default" for name in names_of([overrides for overrides, _ in settings], text)]


def names_of(overrides: Sequence[Overrides], text: Callable[[Any], str] | None = None) -> list[str]:
    """Name each run by its overrides that are not common to all runs; ``text`` formats a value."""
    text = text or _text
    pairs = [{(option, _text(value)) for option, value in own.items()} for own in overrides]
    shared = set.intersection(*pairs) if len(pairs) > 1 else set()
    return [
        " ".join(f"{option}={text(value)}" for option, value in own.items() if (option, _text(value)) not in shared)
        for own in overrides
    ]


def _text(value: Any) -> str:
    """Format a value as in an override."""
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(part)}" for key, part in value.items()) + "}"
    return "null" if value is None else str(value)


def short_text(value: Any) -> str:
    """Format a value as in an override, but round the long floats of a search to three significant digits."""
    text = _text(value)
    return f"{value:.3g}" if isinstance(value, float) and len(text.partition(".")[2]) > 3 else text
