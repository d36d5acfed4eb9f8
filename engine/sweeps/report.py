"""Compare the runs of a sweep in tables and plots: ``python -m ccnet.engine.sweeps.report SWEEP``.

A sweep writes them when it ends. The command rewrites them at any time, even for a running or interrupted sweep.
"""

import fcntl
import json
import math
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..drawing import charts
from ..drawing.tables import Table
from ..runtime.atomic_files import write_text
from ..runtime.overrides import EXECUTION
from ..runtime.run_folder import RESULT
from .results import unfinished

Run = dict[str, Any]  # the content of a result.json
Overrides = dict[str, Any]  # {option: value}
_NO_COLUMNS = ("overrides", "identity", "provenance")


def report(folder: Path) -> list[str]:
    """Print a sweep's tables, and write the tables and plots to its folder.

    The main table lists the runs (``sweep.csv``, ``sweep.md``). If a setting was run with several seeds, a second table
    lists the mean, the standard deviation and the number of successful runs per setting (``sweep_seeds.csv``).

    The plots show one bar per setting (``sweep.png``), score against cost (``sweep_cost.png``) and score against each
    numeric option that was varied (``sweep_OPTION.png``), with error bars over the seeds.

    Args:
        folder: the sweep's folder, with one subfolder per run.

    Returns:
        "name: error" for each run that failed.

    Raises:
        FileNotFoundError: no run in the folder has finished or failed.
        ValueError: a result is damaged, or was written by an earlier version.
    """
    with _alone(folder):
        return _report(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process reports on the same sweep, because all of them write the same files."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # reported below, as a folder without results
        yield
        return
    try:
        with suppress(OSError):  # not every network file system locks folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _report(folder: Path) -> list[str]:
    paths = sorted(folder.rglob(RESULT), key=lambda path: [*map(_natural, path.relative_to(folder).parts)])
    if not paths:
        raise FileNotFoundError(f"{folder} has no results of runs: pass the folder of a sweep, outputs/sweeps/TIME")
    runs = _comparable([_read(path) for path in paths])
    names = _names([run["overrides"] for run in runs])
    done = _succeeded(runs)
    failed = [f"{name}: {run['error']}" for name, run in zip(names, runs, strict=True) if "error" in run]
    columns = [key for key in done[0] if key not in _NO_COLUMNS and all(key in run for run in done)] if done else []
    rows = [
        [name, *(run.get(column, "failed" if "error" in run else "") for column in columns)]
        for name, run in zip(names, runs, strict=True)
    ]
    tables = [Table(("run", *columns), rows)]
    tables[0].write_csv(folder / "sweep.csv")
    written = {"table": [folder / "sweep.csv", folder / "sweep.md"]}
    if done:
        settings = _by_setting(runs)
        written["plots"] = _draw(folder, settings, done, columns)
        if any(len(group) > 1 for _, group in settings):
            tables.append(_over_seeds(settings, columns[0]))
            tables[1].write_csv(folder / "sweep_seeds.csv")
            written["seeds"] = [folder / "sweep_seeds.csv"]
    write_text(folder / "sweep.md", "\n\n".join(table.markdown() for table in tables) + "\n")
    for table in tables:
        print(f"\n{table.text()}")
    print()
    for line in failed:
        print(f"failed    {line}")
    for path in unfinished(folder):
        print(f"started   {path}, not finished")
    for what, files in written.items():
        print(f"{what:10}{', '.join(map(str, files))}")
    return failed


def _read(path: Path) -> Run:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Repeat the sweep with resume=auto to rewrite it") from error
    if not (isinstance(run, dict) and isinstance(run.get("overrides"), dict)):
        raise ValueError(f"{path} was written by an earlier version in another format: rerun the sweep")
    return {key: math.nan if value is None else value for key, value in run.items()}  # JSON has no NaN


def _comparable(runs: list[Run]) -> list[Run]:
    """Return the runs with comparable overrides, although several commands may have added to the sweep.

    Options are listed in one order. Options for how a run is executed, such as ``resume=auto``, are omitted unless all
    runs have them. A failed run is omitted if another run with the same overrides has succeeded.
    """
    given = [{_bare(option) for option in run["overrides"]} for run in runs]
    partial = {option for option in set.union(*given) - set.intersection(*given) if _is_execution(option)}
    order = dict.fromkeys(option for run in runs for option in run["overrides"])
    made = [
        run | {"overrides": {key: own[key] for key in order if key in own and _bare(key) not in partial}}
        for run in runs
        for own in [run["overrides"]]
    ]
    succeeded = {_setting(run["overrides"]) for run in made if "error" not in run}
    return [run for run in made if "error" not in run or _setting(run["overrides"]) not in succeeded]


def _is_execution(option: str) -> bool:
    return option.partition(".")[0] in EXECUTION


def _setting(overrides: Overrides) -> tuple[tuple[str, str], ...]:
    return tuple((option, _text(value)) for option, value in overrides.items())


def _draw(folder: Path, settings: list[tuple[Overrides, list[Run]]], done: list[Run], columns: list[str]) -> list[Path]:
    """Plot the score, which is the first column; return the paths of the plots."""
    score = columns[0]
    names = _setting_names(settings, _short)
    by_name = {name: runs for name, (_, runs) in zip(names, settings, strict=True)}
    pictures = [folder / "sweep.png"]
    charts.save_comparison(
        pictures[0], {name: [run.get(score) for run in runs] for name, runs in by_name.items()}, score
    )
    if "gflops" in columns:
        pictures.append(folder / "sweep_cost.png")
        succeeded = {name: _succeeded(runs) for name, runs in by_name.items()}
        costs = {name: (runs[0]["gflops"], [run[score] for run in runs]) for name, runs in succeeded.items() if runs}
        charts.save_cost(pictures[-1], costs, score)
    for option, lines in _trends(done, score).items():
        pictures.append(folder / f"sweep_{option}.png")
        charts.save_trend(pictures[-1], option, lines, score)
    return pictures


def _succeeded(runs: list[Run]) -> list[Run]:
    return [run for run in runs if "error" not in run]


def _by_setting(runs: list[Run]) -> list[tuple[Overrides, list[Run]]]:
    """Group runs that differ only in the seed, as (overrides without the seed, runs)."""
    groups: dict[tuple, tuple[Overrides, list[Run]]] = {}
    for run in runs:
        setting = _without(run["overrides"], "seed")
        groups.setdefault(_setting(setting), (setting, []))[1].append(run)
    return list(groups.values())


def _over_seeds(settings: list[tuple[Overrides, list[Run]]], score: str) -> Table:
    """Return a table of the mean and standard deviation of each setting's score over its seeds."""
    rows = []
    for name, (_, runs) in zip(_setting_names(settings), settings, strict=True):
        values = [run[score] for run in _succeeded(runs)]
        spread = statistics.stdev(values) if len(values) > 1 else ""
        rows.append([name, f"{len(values)}/{len(runs)}", statistics.mean(values) if values else "", spread])
    return Table(("setting", "succeeded", f"{score} mean", f"{score} std"), rows)


def _trends(runs: list[Run], score: str) -> dict[str, dict[str, dict[float, list[float]]]]:
    """Return {option: {setting of the other options: {value: scores}}} for every varied option that is numeric."""
    given = [{_bare(option): value for option, value in run["overrides"].items()} for run in runs]
    trends = {}
    for option in sorted({option for own in given for option in own} - {"seed"}):
        values: list[Any] = [own.get(option) for own in given]
        if not all(map(_is_number, values)) or len(set(values)) < 2:
            continue
        names = _names([_without(own, option, "seed") for own in given])
        if len(set(names)) == len(set(zip(names, values, strict=True))):
            names = [""] * len(runs)  # a search, not a grid: the other options differ from value to value
        settings: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for name, value, run in zip(names, values, runs, strict=True):
            settings[name][value].append(run[score])
        trends[option] = settings
    return trends


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without(overrides: Overrides, *options: str) -> Overrides:
    return {option: value for option, value in overrides.items() if _bare(option) not in options}


def _bare(option: str) -> str:
    """Return an option's name without the ``+`` that adds it to the configuration."""
    return option.lstrip("+")


def _setting_names(settings: list[tuple[Overrides, list[Run]]], text: Callable[[Any], str] | None = None) -> list[str]:
    """Name each setting by its options; "all seeds" if only the seed varies, "default" if it has none."""
    if len(settings) == 1 and len(settings[0][1]) > 1:
        return ["all seeds"]
    return [name or "default" for name in _names([overrides for overrides, _ in settings], text)]


def _names(overrides: Sequence[Overrides], text: Callable[[Any], str] | None = None) -> list[str]:
    """Name each run by its overrides that are not common to all runs; `text` formats a value."""
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


def _short(value: Any) -> str:
    """Format a value as in an override, but round the long floats of a search to three significant digits."""
    text = _text(value)
    return f"{value:.3g}" if isinstance(value, float) and len(text.partition(".")[2]) > 3 else text


def _natural(part: str) -> tuple[int, int, str]:
    """Return a sort key that puts run 10 after run 9."""
    return (0, int(part), "") if part.isdecimal() else (1, 0, part)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m ccnet.engine.sweeps.report outputs/sweeps/TIME")
    try:
        report(Path(sys.argv[1]).expanduser())
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
