"""Check a sweep before its first run and report on it after its last."""

import importlib.util
import signal
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ..guards.secret_values import refuse_secrets
from ..runtime.run_folder import RESULT, holds_run

# Hydra plugins, and this package's extras that install them.
_EXTRAS = {"hydra_joblib_launcher": "joblib", "hydra_submitit_launcher": "slurm", "hydra_optuna_sweeper": "optuna"}


class SweepReport(Callback):
    """Hydra callback that checks a multirun before it starts and reports on it when it ends; see :mod:`.report`."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit if a plugin is missing, if Hydra would write a secret to multirun.yaml, or if the folder holds runs.

        Runs in the folder are accepted only if ``resume`` is set; otherwise, new runs would overwrite them.

        In a parallel sweep, also let Ctrl-C end the launcher immediately: the runs receive the signal too and save
        their state, whereas joblib would kill them if it handled the signal.
        """
        try:
            refuse_secrets({"the command line": sys.argv})
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error
        folder = Path(config.hydra.sweep.dir)
        if config.hydra.job.config_name == "config" and config.resume is None and _holds_runs(folder):
            raise SystemExit(
                f"error: {folder} already holds a sweep: add resume=auto to run only what is missing, or choose "
                "another folder with hydra.sweep.dir=DIR"
            )
        for kind in ("launcher", "sweeper"):
            package = config.hydra[kind]._target_.split(".")[1]
            if package in _EXTRAS and not _installed(package):
                choice, name = config.hydra.runtime.choices[f"hydra/{kind}"], package.replace("_", "-")
                raise SystemExit(f"error: hydra/{kind}={choice} needs {name}: pip install 'ccnet[{_EXTRAS[package]}]'")
            if package == "hydra_joblib_launcher" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, signal.SIG_DFL)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the tables, write them and the plots to the sweep's folder, and exit with code 1 if a run failed."""
        from .report import report  # slow: imports matplotlib, and Hydra loads this callback for every command

        folder = Path(config.hydra.sweep.dir)
        if next(folder.rglob(RESULT), None) and report(folder):
            raise SystemExit(1)


def _holds_runs(folder: Path) -> bool:
    return any(holds_run(run) for run in folder.glob("*"))


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # no Hydra plugin is installed
        return False
