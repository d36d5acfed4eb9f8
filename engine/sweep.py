"""The end of a sweep: one table and one picture over its runs."""

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from engine import figures
from engine.tables import text_table, write_csv

# Cost is of one training crop, see engine/cost.py.
_COLUMNS = (
    *("mIoU", "pixel_acc", "mean_acc", "best_mIoU"),
    *("parameters", "gflops", "saved_mb", "val_images_per_s", "iterations", "seconds"),
)


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Leave what the sweep's table needs in a run's folder."""
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
        names = _what_differs([run["overrides"] for run in runs])
        rows = [[name, *(run[column] for column in _COLUMNS)] for name, run in zip(names, runs, strict=True)]
        write_csv(folder / "sweep.csv", ("run", *_COLUMNS), rows)
        figures.save_comparison(folder / "sweep.png", names, [run["mIoU"] for run in runs])
        print(f"\n{text_table(('run', *_COLUMNS), rows)}\n\ntable    {folder / 'sweep.csv'}")
        print(f"picture  {folder / 'sweep.png'}")


def _what_differs(overrides: list[list[str]]) -> list[str]:
    """Name each run by the overrides that not all runs share."""
    shared = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    return [" ".join(part for part in own if part not in shared) for own in overrides]
