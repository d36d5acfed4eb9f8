"""``result.json`` in a run's folder: the run's overrides and scores."""

import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ..runtime.atomic_files import write_text
from ..runtime.overrides import given_overrides

RESULT = "result.json"


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write the overrides of this run, {option: value}, and its result, to be read by the sweep's report.

    Args:
        folder: the run's folder.
        result: scores, starting with the one that runs are compared by; {"error": message} if the run failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"overrides": given_overrides()} | result, indent=1)
    write_text(folder / RESULT, text + "\n")  # atomic: other processes may be reading


def sweep_name() -> str | None:
    """Return the name of the sweep's folder, which groups its runs in W&B; None outside a sweep."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().job, "num"):
        return None
    return Path(HydraConfig.get().sweep.dir).resolve().name


def finished_score(folder: Path, iterations: int) -> float | None:
    """Return the best score, in [0, 1], of the run in `folder`; None if it has not completed all iterations."""
    try:
        result = json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        return None
    if result.get("iterations") != iterations:
        return None
    return next(value for name, value in result.items() if name.startswith("best_")) / 100


def unfinished(folder: Path) -> list[Path]:
    """Return the folders of runs that have started but have no result: they are still running, or were killed."""
    runs = sorted(path.parent for path in folder.rglob("config.yaml"))
    return [run for run in runs if not (run / RESULT).exists() and "wandb" not in run.relative_to(folder).parts]
