"""The runs of a sweep: what each leaves behind, and what happens when the last has ended."""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from engine.files import write_text
from engine.secret_values import refuse_secrets

RESULT = "result.json"
_ROOT = Path(__file__).resolve().parent.parent
# Plugins of Hydra by what installs them.
_EXTRAS = {"hydra_joblib_launcher": "joblib", "hydra_submitit_launcher": "slurm", "hydra_optuna_sweeper": "optuna"}


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


class SweepReport(Callback):
    """Hydra callback: after a multirun, gather each run's ``result.json``; see :mod:`engine.report`."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit if the launcher or the sweeper is not there, or Hydra would write a secret into multirun.yaml.

        Let a parallel sweep's runs save at Ctrl-C, which reaches them too: joblib would kill them when it hears of it.
        """
        try:
            refuse_secrets({"the command line": sys.argv})
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error
        for kind in ("launcher", "sweeper"):
            package = config.hydra[kind]._target_.split(".")[1]
            if package in _EXTRAS and not _installed(package):
                choice, name = config.hydra.runtime.choices[f"hydra/{kind}"], package.replace("_", "-")
                raise SystemExit(f"error: hydra/{kind}={choice} needs {name}: pip install '.[{_EXTRAS[package]}]'")
            if package == "hydra_submitit_launcher":  # its jobs may start in any folder
                path = os.environ.get("PYTHONPATH")
                os.environ["PYTHONPATH"] = f"{_ROOT}{os.pathsep}{path}" if path else str(_ROOT)
            if package == "hydra_joblib_launcher" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, signal.SIG_DFL)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table, write it and its picture into the sweep's folder; exit 1 if a run failed."""
        from engine.report import report

        folder = Path(config.hydra.sweep.dir)
        if next(folder.rglob(RESULT), None) and report(folder):
            raise SystemExit(1)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # no plugin at all
        return False
