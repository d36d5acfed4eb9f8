"""One table and one picture over the runs of a sweep: ``python -m ccnet.engine.sweeps.report SWEEP``.

A sweep writes them when it ends; this makes them again, also of one that is under way or was cut off.
"""

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..drawing import charts
from ..drawing.tables import text_table, write_csv
from ..runtime.atomic_files import write_text
from .results import RESULT, unfinished

_SEED = re.compile(r"\+*seed=")
_LONG = re.compile(r"(?<==)\d+\.\d{4,}(e-?\d+)?")  # numbers of a search


def report(folder: Path) -> list[str]:
    """Print the table of a sweep, write ``sweep.csv``, ``sweep.md`` and pictures into it; returns the runs that failed.

    The pictures: a bar per setting (``sweep.png``), the score against the cost (``sweep_cost.png``) and over each
    option that was given several numbers (``sweep_OPTION.png``), with the seeds as their spread.

    Settings that were run with several seeds also get their mean, standard deviation and share of runs that succeeded
    (``sweep_seeds.csv``).

    Args:
        folder: of the sweep, with a folder per run.

    Raises:
        FileNotFoundError: no run in it has ended.
    """
    paths = sorted(folder.rglob(RESULT), key=lambda path: [*map(_natural, path.relative_to(folder).parts)])
    if not paths:
        raise FileNotFoundError(f"{folder} has no run that has ended: give the folder of a sweep, outputs/sweeps/TIME")
    runs = [json.loads(path.read_text()) for path in paths]
    names = _what_differs([run["overrides"] for run in runs])
    done = [run for run in runs if "error" not in run]
    failed = [f"{name}: {run['error']}" for name, run in zip(names, runs, strict=True) if "error" in run]
    columns = [key for key in done[0] if key != "overrides" and all(key in run for run in done)] if done else []
    header = ("run", *columns)
    rows = [
        [name, *(run.get(column, "failed" if "error" in run else "") for column in columns)]
        for name, run in zip(names, runs, strict=True)
    ]
    write_csv(folder / "sweep.csv", header, rows)
    written = {"table": [folder / "sweep.csv"]}
    tables = [(header, rows)]
    if done:
        settings = _settings(runs)
        written["pictures"] = _draw(folder, settings, done, columns)
        if any(len(group) > 1 for group in settings.values()):
            tables.append(_over_seeds(settings, columns[0]))
            write_csv(folder / "sweep_seeds.csv", *tables[-1])
            written["seeds"] = [folder / "sweep_seeds.csv"]
    write_text(folder / "sweep.md", "\n\n".join(_markdown(*table) for table in tables) + "\n")
    written["table"].append(folder / "sweep.md")
    for table in tables:
        print(f"\n{text_table(*table)}")
    print()
    for line in failed:
        print(f"failed    {line}")
    for path in unfinished(folder):
        print(f"begun     {path}, not finished")
    for what, files in written.items():
        print(f"{what:10}{', '.join(map(str, files))}")
    return failed


def _draw(folder: Path, settings: dict[str, list[dict]], done: list[dict[str, Any]], columns: list[str]) -> list[Path]:
    """Pictures of the runs that are done, and what stands in their column of the score, the first."""
    score = columns[0]
    short = {_LONG.sub(lambda number: f"{float(number[0]):.3g}", name): group for name, group in settings.items()}
    pictures = [folder / "sweep.png"]
    charts.save_comparison(
        pictures[0], {name: [run.get(score) for run in group] for name, group in short.items()}, score
    )
    if "gflops" in columns:
        pictures.append(folder / "sweep_cost.png")
        succeeded = {name: [run for run in group if "error" not in run] for name, group in short.items()}
        costs = {
            name: (group[0]["gflops"], [run[score] for run in group]) for name, group in succeeded.items() if group
        }
        charts.save_cost(pictures[-1], costs, score)
    for option, lines in _trends(done, score).items():
        pictures.append(folder / f"sweep_{option}.png")
        charts.save_trend(pictures[-1], option, lines, score)
    return pictures


def _settings(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs by what differs between them besides the seed."""
    groups = defaultdict(list)
    for run in runs:
        groups[tuple(part for part in run["overrides"] if not _SEED.match(part))].append(run)
    return dict(zip(_what_differs([list(key) for key in groups]), groups.values(), strict=True))


def _over_seeds(settings: dict[str, list[dict[str, Any]]], score: str) -> tuple[tuple[str, ...], list[list[Any]]]:
    """Header and rows."""
    rows = []
    for name, group in settings.items():
        values = [run[score] for run in group if "error" not in run]
        spread = statistics.stdev(values) if len(values) > 1 else ""
        rows.append([name or "all", f"{len(values)}/{len(group)}", statistics.mean(values) if values else "", spread])
    return ("setting", "succeeded", f"{score} mean", f"{score} std"), rows


def _trends(runs: list[dict[str, Any]], score: str) -> dict[str, dict[str, dict[float, list[float]]]]:
    """Option -> setting of the others -> its value -> score by seed; of options with several values, all numbers."""
    given = [dict(part.lstrip("+").split("=", 1) for part in run["overrides"] if "=" in part) for run in runs]
    options = {option for own in given for option in own} - {"seed"}
    trends = {}
    for option in sorted(options):
        values = [_number(own.get(option)) for own in given]
        if None in values or len(set(values)) < 2:
            continue
        others = [[f"{key}={value}" for key, value in own.items() if key not in (option, "seed")] for own in given]
        settings = defaultdict(lambda: defaultdict(list))
        names = _what_differs(others)
        if len(set(names)) == len(set(zip(names, values, strict=True))):
            names = [""] * len(runs)  # a search, not a grid: no two runs make a line
        for name, value, run in zip(names, values, runs, strict=True):
            settings[name][value].append(run[score])
        trends[option] = settings
    return trends


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _what_differs(overrides: list[list[str]]) -> list[str]:
    """Name each run by the overrides that not all runs share."""
    shared = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    return [" ".join(part for part in own if part not in shared) for own in overrides]


def _natural(part: str) -> tuple[int, int, str]:
    """Run 10 after run 9."""
    return (0, int(part), "") if part.isdecimal() else (1, 0, part)


def _markdown(header: tuple[str, ...], rows: list[list[Any]]) -> str:
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [list(header), ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("give the folder of a sweep: python -m ccnet.engine.sweeps.report outputs/sweeps/TIME")
    try:
        report(Path(sys.argv[1]).expanduser())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise SystemExit(f"error: {error}") from error
