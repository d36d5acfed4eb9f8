"""The end of a sweep: one table and one picture over its runs."""

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from engine import figures
from engine.tables import text_table, write_csv


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Leave what the sweep's table needs in a run's folder: "overrides", the scores, the first of them to compare."""
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")


class SweepReport(Callback):
    """Hydra callback: after a multirun, gather each run's ``result.json``."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; write ``sweep.csv`` and ``sweep.png`` into the sweep's folder."""
        folder = Path(config.hydra.sweep.dir)
        results = sorted(folder.rglob("result.json"), key=lambda path: path.stat().st_mtime)
        if not results:
            return
        runs = [json.loads(path.read_text()) for path in results]
        columns = [key for key in runs[0] if key != "overrides" and all(key in run for run in runs)]
        names = _what_differs([run["overrides"] for run in runs])
        rows = [[name, *(run[column] for column in columns)] for name, run in zip(names, runs, strict=True)]
        write_csv(folder / "sweep.csv", ("run", *columns), rows)
        figures.save_comparison(folder / "sweep.png", names, [run[columns[0]] for run in runs], columns[0])
        print(f"\n{text_table(('run', *columns), rows)}\n\ntable    {folder / 'sweep.csv'}")
        print(f"picture  {folder / 'sweep.png'}")


def _what_differs(overrides: list[list[str]]) -> list[str]:
    """Name each run by the overrides that not all runs share."""
    shared = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    return [" ".join(part for part in own if part not in shared) for own in overrides]
