"""What the runs of a sweep leave behind: ``result.json`` in each run's folder."""

import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ..runtime.atomic_files import write_text

RESULT = "result.json"


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Leave what the sweep's table needs in a run's folder: "overrides", the scores, the first of them to compare.

    A run that failed leaves "overrides" and "error".
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RESULT, json.dumps(result, indent=1) + "\n")  # others may be reading


def sweep_name() -> str | None:
    """What the runs of the sweep under way are shown together as: the name of its folder; None outside a sweep."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().job, "num"):
        return None
    return Path(HydraConfig.get().sweep.dir).resolve().name


def finished_score(folder: Path, iterations: int) -> float | None:
    """The best score, a share, of the run in ``folder`` if all its ``iterations`` are done."""
    try:
        result = json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        return None
    if result.get("iterations") != iterations:
        return None
    return next(value for name, value in result.items() if name.startswith("best_")) / 100


def unfinished(folder: Path) -> list[Path]:
    """Folders of a sweep's runs that have begun and left no result: they are under way, or were killed."""
    runs = sorted(path.parent for path in folder.rglob("config.yaml"))
    return [run for run in runs if not (run / RESULT).exists() and "wandb" not in run.relative_to(folder).parts]
