"""The runs of a sweep: what each leaves behind, and what happens when the last has ended."""

import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from engine.files import write_text

_RESULT = "result.json"


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Leave what the sweep's table needs in a run's folder: "overrides", the scores, the first of them to compare.

    A run that failed leaves "overrides" and "error".
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _RESULT, json.dumps(result, indent=1) + "\n")


def sweep_name() -> str | None:
    """What the runs of the sweep under way are shown together as: the name of its folder; None outside a sweep."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().job, "num"):
        return None
    return Path(HydraConfig.get().sweep.dir).resolve().name


def finished_score(folder: Path, iterations: int) -> float | None:
    """The best score, a share, of the run in ``folder`` if all its ``iterations`` are done."""
    try:
        result = json.loads((folder / _RESULT).read_text())
    except (OSError, ValueError):
        return None
    if result.get("iterations") != iterations:
        return None
    return next(value for name, value in result.items() if name.startswith("best_")) / 100


class SweepReport(Callback):
    """Hydra callback: after a multirun, gather each run's ``result.json``; see :mod:`engine.report`."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table, write it and its picture into the sweep's folder; exit 1 if a run failed."""
        from engine.report import report

        folder = Path(config.hydra.sweep.dir)
        if next(folder.rglob(_RESULT), None) and report(folder):
            raise SystemExit(1)
