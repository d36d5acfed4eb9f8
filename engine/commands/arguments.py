"""Check the arguments of a command, and rewrite those that Hydra would not accept."""

import os
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from ...conf import CONF

_WITH_VALUE = (
    "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p", "--cfg", "-c", "--info",
    "-i", "--experimental-rerun",
)  # Hydra's flags whose value is the next argument  # fmt: skip
_SWEEP = ("-m", "--multirun")
_SHOWS = re.compile(r"(--cfg|--info)(=.*)?|-[ci](job|hydra|all)?")
_COMPOSED = ("[", "{", "'", '"')  # the first characters of lists, mappings and quoted strings
# Options whose values are text, even if they look like numbers: the commit 12e3456 is not infinity.
_TEXT = {
    "commit", "machine", "checkpoint", "input", "output", "resume", "init", "labels", "backbone.weights",
    "dataset.root", "dataset.images", "dataset.masks", "dataset.lists",
}  # fmt: skip
# A quoted string, or the text between the signs that structure lists and mappings.
_BARE = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^][{},:'"]+""")
# An option that may be a mapping, or an entry of it.
_ENTRY = re.compile(
    r"\+{0,2}(dataset\.(?:images|masks|lists|values)|optimizer\.lr_factors)(?:\.([^=~@]+))?=(.*)", re.DOTALL
)


def accepted(overrides: Iterable[str]) -> list[str]:
    """Return overrides in a form that Hydra accepts; those that remain invalid are kept, for Hydra to report.

    Values outside Hydra's grammar, as in ``input=straße.jpg`` or ``input=[IMG(1).jpg,B]``, are quoted, and so are paths
    with commas, as in ``resume=runs/1,2``, and text that looks like a number, as in ``commit=12e3456``. Entries of an
    option that may be a mapping, as in ``dataset.images.train=A dataset.images.val=B``, are joined to
    ``dataset.images={train:'A',val:'B'}``, because Hydra rejects new keys of an option. A sweep over an entry becomes
    ``++dataset.images.val=A,B`` and moves to the end, because Hydra would replace it by a mapping that follows. Flags
    move to the start, because Hydra expects all overrides in one place.
    """
    flags: list[str] = []
    kept: list[str] = []
    swept: list[str] = []
    places: dict[str, int] = {}
    overrides = list(overrides)
    multirun = not set(_SWEEP).isdisjoint(overrides)
    for before, argument in pairwise(["", *overrides]):
        if argument.startswith("-") or before in _WITH_VALUE:
            flags.append(argument)
            continue
        override = _quoted(argument, multirun)
        match = _ENTRY.fullmatch(override)
        parsed = parse_override(override) if match else None
        if match is None or parsed is None or (parsed.is_sweep_override() and match[2] is None):
            kept.append(override)
        elif parsed.is_sweep_override():
            swept.append(f"++{override.lstrip('+')}")
        elif not (entries := _entries(match, parsed.value())):
            kept.append(override)
        elif match[1] in places:
            place = places[match[1]]
            kept[place] = f"{kept[place][:-1]},{entries}}}"
        else:
            places[match[1]] = len(kept)
            kept.append(f"{match[1]}={{{entries}}}")
    return flags + kept + swept


def _entries(match: re.Match[str], value: Any) -> str:
    """Return the entries of the mapping that an override sets, given its match and its value; "" if it sets none."""
    _, key, text = match.groups()
    if key is None:
        return text.strip()[1:-1].strip() if isinstance(value, dict) else ""
    return f"{key}:{_string(value) if isinstance(value, str) else text}"


def _quoted(override: str, multirun: bool) -> str:
    """Return an override whose value Hydra can parse; in a sweep, commas separate values, each of which is quoted."""
    key, equals, value = override.partition("=")
    if not equals or "${" in value:
        return override
    sweeps = multirun and not key.startswith("hydra.")  # nothing can be swept over Hydra's own options
    if parsed := parse_override(override):
        is_path = parsed.is_sweep_override() and not sweeps and _is_path(value)
        is_text = key in _TEXT and isinstance(parsed.value(), int | float) and not isinstance(parsed.value(), bool)
        return f"{key}={_string(value)}" if is_path or is_text else override
    if value.startswith(_COMPOSED):
        text = _BARE.sub(lambda match: _quoted_item(match[0]), value)
    else:
        text = ",".join(map(_quoted_item, value.split(","))) if sweeps else _string(value)
    quoted = f"{key}={text}"
    return quoted if parse_override(quoted) else override


def _is_path(value: str) -> bool:
    """Return True for an existing path, and for a new one in an existing folder other than the current one."""
    path = Path(os.path.expanduser(value))
    # Unlike the methods of Path, these raise no error for a list of values that is too long for a name.
    return os.path.exists(path) or ("/" in value and os.path.isdir(path.parent))


def _quoted_item(text: str) -> str:
    """Return a part of a list, mapping or sweep, quoted unless it already is or Hydra can parse it."""
    if text.startswith(("'", '"')) or not text.strip() or parse_override(f"x={text.strip()}"):
        return text
    return _string(text.strip())


def _string(value: str) -> str:
    """Return a value as a quoted string of Hydra's grammar."""
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'")  # a backslash is only special before a quote
    return f"'{escaped}'"


def parse_override(override: str) -> Override | None:
    """Parse an override as Hydra does; return None if it is invalid."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def check_overrides(overrides: Iterable[str]) -> None:
    """Raise ValueError for mistakes that Hydra accepts silently or reports with a traceback.

    These are arguments that are not options, options without a value (an empty path means the current folder), config
    groups whose value is not a name, and ``-m`` with a flag that only shows something. Hydra reports other overrides
    that it cannot parse.
    """
    overrides = list(overrides)
    flags = [flag for before, flag in pairwise(["", *overrides]) if before not in _WITH_VALUE]
    shows = next((flag for flag in flags if _SHOWS.fullmatch(flag)), None)
    if shows is not None and any(flag in _SWEEP for flag in flags):
        raise ValueError(f"{shows} shows the configuration of one run and -m makes several: leave out one of them")
    for before, override in pairwise(["", *overrides]):
        option, equals, value = override.partition("=")
        if option.startswith(("-", "~")) or before in _WITH_VALUE:
            continue
        if not equals:
            raise ValueError(f"{override} is not an option: write OPTION=VALUE; --help lists the options")
        if value.strip() in ("", "''", '""'):
            raise ValueError(
                f"{option}= has no value: set {option}=VALUE, or remove it. If the value comes from a shell variable, "
                "that variable is empty or not set"
            )
        group = CONF / option.lstrip("+").partition("@")[0]
        if group.is_dir() and not _chooses_config(override):
            names = (path.stem for path in sorted(group.glob("*.yaml")))
            raise ValueError(f"{override}: {option} must be the name of a configuration, {option}={'|'.join(names)}")


def _chooses_config(override: str) -> bool:
    """Return False if Hydra would raise a TypeError or ValueError for the value of a config group.

    Names, lists of names and sweeps select configurations; a mapping changes settings of the selected one.
    """
    parsed = parse_override(override)
    if parsed is None:
        return True
    value: Any = parsed.value()
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        names = choice if isinstance(choice, list) else [choice]
        if any(name is None or isinstance(name, int | float | list) for name in names):
            return False
    return True
