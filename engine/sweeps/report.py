"""Compare the runs of a sweep in tables and plots: ``python -m ccnet.engine.sweeps.report SWEEP``.

A sweep writes them when it ends. The command rewrites them at any time, even for a running or interrupted sweep.
"""

import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..drawing import charts
from ..drawing.tables import Table
from ..runtime.atomic_files import given_path, write_text
from ..runtime.run_folder import RESULT
from .results import unfinished
from .run_settings import (
    Overrides,
    Run,
    bare_name,
    by_setting,
    comparable,
    names_of,
    setting_names,
    short_text,
    successful,
    without,
)

_NO_COLUMNS = ("overrides", "identity", "provenance")


def report(folder: Path) -> list[str]:
    """Print a sweep's tables, and write the tables and plots to its folder.

    The main table lists the runs (``sweep.csv``, ``sweep.md``). If a setting was run with several seeds, a second table
    lists the mean, the standard deviation and the number of successful runs per setting (``sweep_seeds.csv``).

    The plots show one bar per setting (``sweep.png``), score against cost (``sweep_cost.png``) and score against each
    numeric option that was varied (``sweep_OPTION.png``), with error bars over the seeds. Runs of tasks with different
    scores, such as mIoU and AP, are only listed.

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
def _alone(folder: Path) -> Generator[None]:
    """Wait until no other process reports on the same sweep, because all of them write the same files."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows, or reported below as a folder without results
        yield
        return
    try:
        with suppress(OSError):  # not every network file system locks folders
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _report(folder: Path) -> list[str]:
    paths = sorted(folder.rglob(RESULT), key=lambda path: [*map(_natural, path.relative_to(folder).parts)])
    if not paths:
        raise FileNotFoundError(f"{folder} has no results of runs: pass the folder of a sweep, outputs/sweeps/TIME")
    runs = comparable([_read(path) for path in paths])
    names = names_of([run["overrides"] for run in runs])
    done = successful(runs)
    failed = [f"{name}: {run['error']}" for name, run in zip(names, runs, strict=True) if "error" in run]
    scores = list(dict.fromkeys(score for run in done for score in _columns(run)[:1]))
    common = [key for key in (_columns(done[0]) if done else []) if all(key in run for run in done)]
    columns = list(dict.fromkeys([*scores, *common]))
    rows = [
        [name, *(run.get(column, "failed" if "error" in run else "") for column in columns)]
        for name, run in zip(names, runs, strict=True)
    ]
    tables = [Table(("run", *columns), rows)]
    tables[0].write_csv(folder / "sweep.csv")
    written = {"table": [folder / "sweep.csv", folder / "sweep.md"]}
    if len(scores) == 1:
        settings = by_setting(runs)
        written["plots"] = _draw(folder, settings, done, columns)
        if any(len(group) > 1 for _, group in settings):
            tables.append(_over_seeds(settings, scores[0]))
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
    if len(scores) > 1:
        print(f"no plots, because the runs have different scores: {', '.join(scores)}")
    for what, files in written.items():
        print(f"{what:10}{', '.join(map(str, files))}")
    return failed


def _columns(run: Run) -> list[str]:
    """Return the names of a run's results; the first is its score."""
    return [key for key in run if key not in _NO_COLUMNS]


def _read(path: Path) -> Run:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Repeat the sweep with resume=auto to rewrite it") from error
    if not (isinstance(run, dict) and isinstance(run.get("overrides"), dict)):
        raise ValueError(f"{path} was written by an earlier version in another format: rerun the sweep")
    return {key: math.nan if value is None else value for key, value in run.items()}  # JSON has no NaN


def _draw(folder: Path, settings: list[tuple[Overrides, list[Run]]], done: list[Run], columns: list[str]) -> list[Path]:
    """Plot the score, which is the first column; return the paths of the plots."""
    score = columns[0]
    rounded, exact = setting_names(settings, short_text), setting_names(settings)
    names = [one if rounded.count(one) == 1 else other for one, other in zip(rounded, exact, strict=True)]
    by_name = {name: runs for name, (_, runs) in zip(names, settings, strict=True)}
    pictures = [folder / "sweep.png"]
    charts.save_comparison(
        pictures[0], {name: [run.get(score) for run in runs] for name, runs in by_name.items()}, score
    )
    if "gflops" in columns:
        pictures.append(folder / "sweep_cost.png")
        succeeded = {name: successful(runs) for name, runs in by_name.items()}
        costs = {name: (runs[0]["gflops"], [run[score] for run in runs]) for name, runs in succeeded.items() if runs}
        charts.save_cost(pictures[-1], costs, score)
    for option, lines in _trends(done, score).items():
        pictures.append(folder / f"sweep_{option}.png")
        charts.save_trend(pictures[-1], option, lines, score)
    return pictures


def _over_seeds(settings: list[tuple[Overrides, list[Run]]], score: str) -> Table:
    """Return a table of the mean and standard deviation of each setting's score over its seeds."""
    rows = []
    for name, (_, runs) in zip(setting_names(settings), settings, strict=True):
        values = [run[score] for run in successful(runs)]
        mean = float(np.mean(values)) if values else ""
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else ""
        rows.append([name, f"{len(values)}/{len(runs)}", mean, spread])
    return Table(("setting", "succeeded", f"{score} mean", f"{score} std"), rows)


def _trends(runs: list[Run], score: str) -> dict[str, dict[str, dict[float, list[float]]]]:
    """Return {option: {setting of the other options: {value: scores}}} for every varied option that is numeric."""
    given = [{bare_name(option): value for option, value in run["overrides"].items()} for run in runs]
    trends = {}
    for option in sorted({option for own in given for option in own} - {"seed"}):
        values: list[Any] = [own.get(option) for own in given]
        if not all(map(_is_number, values)) or len(set(values)) < 2:
            continue
        names = names_of([without(own, option, "seed") for own in given])
        if len(set(names)) == len(set(zip(names, values, strict=True))):
            names = [""] * len(runs)  # a search, not a grid: the other options differ from value to value
        settings: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for name, value, run in zip(names, values, runs, strict=True):
            settings[name][value].append(run[score])
        trends[option] = settings
    return trends


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _natural(part: str) -> tuple[int, int, str]:
    """Return a sort key that puts run 10 after run 9."""
    return (0, int(part), "") if part.isdecimal() else (1, 0, part)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m ccnet.engine.sweeps.report outputs/sweeps/TIME")
    try:
        report(given_path(sys.argv[1]))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
