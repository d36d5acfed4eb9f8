"""One table and one picture over the runs of a sweep: ``python -m engine.report SWEEP``.

A sweep writes them when it ends; this makes them again, also of one that is under way or was cut off.
"""

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from engine import figures
from engine.tables import text_table, write_csv

_SEED = re.compile(r"\+*seed=")


def report(folder: Path) -> list[str]:
    """Print the table of a sweep, write ``sweep.csv``, ``sweep.md`` and pictures into it; returns the runs that failed.

    The pictures: a bar per run (``sweep.png``), the score against the cost (``sweep_cost.png``) and over each option
    that was given several numbers (``sweep_OPTION.png``), with the seeds as its spread.

    Settings that were run with several seeds also get their mean, standard deviation and share of runs that succeeded
    (``sweep_seeds.csv``).

    Args:
        folder: of the sweep, with a folder per run.

    Raises:
        FileNotFoundError: no run in it has ended.
    """
    paths = sorted(folder.rglob("result.json"), key=lambda path: [*map(_natural, path.relative_to(folder).parts)])
    if not paths:
        raise FileNotFoundError(f"{folder} has no run that has ended: give the folder of a sweep, outputs/sweeps/TIME")
    runs = [json.loads(path.read_text()) for path in paths]
    names = _what_differs([run["overrides"] for run in runs])
    done = [(name, run) for name, run in zip(names, runs, strict=True) if "error" not in run]
    failed = [f"{name}: {run['error']}" for name, run in zip(names, runs, strict=True) if "error" in run]
    columns = [key for key in done[0][1] if key != "overrides" and all(key in run for _, run in done)] if done else []
    header = ("run", *columns)
    rows = [
        [name, *(run.get(column, "failed" if "error" in run else "") for column in columns)]
        for name, run in zip(names, runs, strict=True)
    ]
    write_csv(folder / "sweep.csv", header, rows)
    written = {"table": [folder / "sweep.csv"]}
    tables = [(header, rows)]
    if done:
        figures.save_comparison(
            folder / "sweep.png", [n for n, _ in done], [r[columns[0]] for _, r in done], columns[0]
        )
        written["picture"] = [folder / "sweep.png"]
        if "gflops" in columns:
            names_done, gflops, values = zip(*((n, r["gflops"], r[columns[0]]) for n, r in done), strict=True)
            figures.save_cost(folder / "sweep_cost.png", names_done, gflops, values, columns[0])
            written["picture"].append(folder / "sweep_cost.png")
        for option, settings in _trends([run for _, run in done], columns[0]).items():
            written["picture"].append(folder / f"sweep_{option}.png")
            figures.save_trend(written["picture"][-1], option, settings, columns[0])
        if seeds := _over_seeds(runs, columns[0]):
            tables.append(seeds)
            write_csv(folder / "sweep_seeds.csv", *seeds)
            written["seeds"] = [folder / "sweep_seeds.csv"]
    (folder / "sweep.md").write_text("\n\n".join(_markdown(*table) for table in tables) + "\n")
    written["table"].append(folder / "sweep.md")
    for table in tables:
        print(f"\n{text_table(*table)}")
    print()
    for line in failed:
        print(f"failed   {line}")
    for what, files in written.items():
        print(f"{what:9}{', '.join(map(str, files))}")
    return failed


def _over_seeds(runs: list[dict[str, Any]], score: str) -> tuple[tuple[str, ...], list[list[Any]]] | None:
    """Header and rows of the settings without their seeds, if one was run with several."""
    groups = defaultdict(list)
    for run in runs:
        groups[tuple(part for part in run["overrides"] if not _SEED.match(part))].append(run)
    if all(len(group) == 1 for group in groups.values()):
        return None
    rows = []
    for name, group in zip(_what_differs([list(key) for key in groups]), groups.values(), strict=True):
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
        for name, value, run in zip(_what_differs(others), values, runs, strict=True):
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
        raise SystemExit("give the folder of a sweep: python -m engine.report outputs/sweeps/TIME")
    try:
        report(Path(sys.argv[1]).expanduser())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise SystemExit(f"error: {error}") from error
