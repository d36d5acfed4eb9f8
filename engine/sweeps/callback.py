"""Check a sweep before its first run and report on it after its last."""

import importlib.util
import signal
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ..guards.secret_values import refuse_secrets
from ..runtime.run_folder import RESULT, holds_run

# Hydra plugins, and this package's extras that install them.
_EXTRAS = {"hydra_joblib_launcher": "joblib", "hydra_submitit_launcher": "slurm", "hydra_optuna_sweeper": "optuna"}


class OutputFolder(Callback):
    """Hydra callback that creates the output folder of a command, and exits with one message if that is impossible."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the folder before Hydra does, which would show a traceback."""
        hydra = HydraConfig.instance()
        before = hydra.cfg
        hydra.set_config(config)  # not done yet; the name of the folder contains the resolver `hydra:`
        try:
            _create(Path(config.hydra.run.dir), "hydra.run.dir")
        finally:
            hydra.cfg = before


class SweepReport(OutputFolder):
    """Hydra callback that also checks a multirun before its start and reports on it at its end; see :mod:`.report`."""

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
        _create(folder, "hydra.sweep.dir")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the tables, write them and the plots to the sweep's folder, and exit with code 1 if a run failed."""
        from .report import report  # slow: imports matplotlib, and Hydra loads this callback for every command

        folder = Path(config.hydra.sweep.dir)
        if next(folder.rglob(RESULT), None) and report(folder):
            raise SystemExit(1)


def _create(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(
            f"error: the output folder {folder} cannot be created ({error.strerror}): choose another one with "
            f"{option}=DIR, or start the command in a folder that you may write to"
        ) from error


def _holds_runs(folder: Path) -> bool:
    return any(holds_run(run) for run in folder.glob("*"))


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # no Hydra plugin is installed
        return False
