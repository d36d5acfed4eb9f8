"""Check a sweep before its first run and report on it after its last."""

import atexit
import importlib.util
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ..guards.secret_values import refuse_secrets
from ..runtime.atomic_files import write_text
from ..runtime.launchers import is_first, is_one_of_several
from ..runtime.run_folder import RESULT, FolderLock, FolderTaken, holds_run

# Hydra plugins, and this package's extras that install them.
_EXTRAS = {"hydra_joblib_launcher": "joblib", "hydra_submitit_launcher": "slurm", "hydra_optuna_sweeper": "optuna"}
_HELD: list[FolderLock] = []  # the lock of the sweep that this process runs; not in the callback, which is pickled


class OutputFolder(Callback):
    """Hydra callback that creates the output folder of a command, and exits with one message if that is impossible."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the folder before Hydra does, which would show a traceback."""
        hydra = HydraConfig.instance()
        before = hydra.cfg
        hydra.set_config(config)  # Hydra has not done so yet, but the folder's name uses its resolver `hydra:`
        try:
            with _writable("hydra.run.dir", folder := Path(config.hydra.run.dir)):
                folder.mkdir(parents=True, exist_ok=True)
        finally:
            hydra.cfg = before


class SweepReport(OutputFolder):
    """Hydra callback that also checks a multirun before its start and reports on it at its end; see :mod:`.report`."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Lock the folder of the sweep until its end, and exit if it must not start.

        It must not start if a plugin or Slurm is missing, if it sets an interval without a search, if Hydra would write
        a secret to multirun.yaml, if another process is running a sweep in the folder, or if the folder holds runs,
        failed ones included, and ``resume`` is not set, because new runs would overwrite them. Under torchrun, rank 0
        checks and locks the folder, and all ranks use it.

        In a parallel sweep, also let Ctrl-C end the launcher immediately: the runs receive the signal too and save
        their state, whereas joblib would kill them if it handled the signal.
        """
        try:
            refuse_secrets({"the command line": sys.argv})
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error
        if is_one_of_several():
            _share_time(config)
        _check_installed(config.hydra)
        _check_intervals(config.hydra)
        if is_first():
            _claim(Path(config.hydra.sweep.dir), config)
        is_joblib = config.hydra.launcher._target_.split(".")[1] == "hydra_joblib_launcher"
        if is_joblib and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _end_launcher)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the tables, write them and the plots to the sweep's folder, and exit with code 1 if a run failed.

        An error of the report ends the command with a message: Hydra would show a warning and exit with code 0. Under
        torchrun, only rank 0 reports.
        """
        if not is_first():
            return
        folder = Path(config.hydra.sweep.dir)
        from .report import report  # slow: imports matplotlib, and Hydra loads this callback for every command

        try:
            failed = report(folder) if next(folder.rglob(RESULT), None) else []
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                traceback.print_exc()
            raise SystemExit(
                f"error: the runs of this sweep have ended, but their report failed: {error}. To repeat it: python -m "
                f"ccnet.engine.sweeps.report {quote(str(folder))}"
            ) from error
        finally:
            _release()
        if failed:
            raise SystemExit(1)


@contextmanager
def _writable(option: str, folder: Path) -> Generator[None]:
    """Exit with one message if the block cannot write to the output folder that `option` selects."""
    try:
        yield
    except OSError as error:
        raise SystemExit(
            f"error: the output folder {folder} cannot be created or written to ({error.strerror}): choose another one "
            f"with {option}=DIR, or start the command in a folder that you may write to"
        ) from error


def _check_installed(hydra: DictConfig) -> None:
    """Exit unless the launcher and the sweeper of a sweep are installed, and Slurm if the launcher needs it."""
    for kind in ("launcher", "sweeper"):
        package = hydra[kind]._target_.split(".")[1]
        if package in _EXTRAS and not _installed(package):
            choice, name = hydra.runtime.choices[f"hydra/{kind}"], package.replace("_", "-")
            install = f"pip install 'ccnet-segmentation[{_EXTRAS[package]}]'"
            raise SystemExit(f"error: hydra/{kind}={choice} needs {name}: {install}")
    if hydra.launcher._target_.endswith(".SlurmLauncher") and shutil.which("srun") is None:
        raise SystemExit(
            "error: hydra/launcher=slurm needs the commands of Slurm, and srun is not on this machine: start the sweep "
            "on a login node of the cluster, or use hydra/launcher=parallel"
        )


def _check_intervals(hydra: DictConfig) -> None:
    """Exit with a message instead of Hydra's traceback if the sweeper does not support the interval of an option."""
    for option in OverridesParser.create().parse_overrides([*hydra.overrides.task]):
        interval: Any = option.value()
        if not isinstance(interval, IntervalSweep):
            continue
        if hydra.sweeper._target_.endswith(".BasicSweeper"):
            raise SystemExit(
                f"error: {option.input_line} is an interval, from which only a search draws values: add "
                "hydra/sweeper=tpe for one, or list the values of a sweep, separated by commas"
            )
        low, high = float(interval.start or 0), float(interval.end or 0)
        if low > high or (low <= 0 and "log" in interval.tags):
            raise SystemExit(
                f"error: {option.input_line}: set interval(LOW,HIGH) with LOW <= HIGH, and above 0 with tag(log,...)"
            )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # no Hydra plugin is installed
        return False


def _share_time(config: DictConfig) -> None:
    """Let the ranks of a torchrun job write to the folder of rank 0, although the time in its name differs.

    Hydra's resolver ``now`` caches the time in the configuration, and copies it to those of the runs.
    """
    from ..runtime.distributed import from_first_before_joining  # imports torch

    _ = config.hydra.sweep.dir  # fills the cache
    cache = OmegaConf.get_cache(config)
    times = [[list(arguments), text] for arguments, text in cache.get("now", {}).items()]
    shared = json.loads(from_first_before_joining("times of the sweep", json.dumps(times)))
    cache["now"] = {tuple(arguments): text for arguments, text in shared}
    OmegaConf.set_cache(config, cache)


def _claim(folder: Path, config: DictConfig) -> None:
    """Lock the folder of a sweep, and exit if it holds runs that this sweep would overwrite."""
    _lock(folder)
    if config.hydra.job.config_name == "config" and config.resume is None and _holds_runs(folder):
        _release()
        raise SystemExit(
            f"error: {folder} already holds a sweep: add resume=auto to run only what is missing, or choose "
            "another folder with hydra.sweep.dir=DIR"
        )
    with _writable("hydra.sweep.dir", folder):  # Hydra writes this file next; if the disk is full, with a traceback
        write_text(folder / "multirun.yaml", OmegaConf.to_yaml(config))


def _lock(folder: Path) -> None:
    """Lock the folder of a sweep until :func:`_release`, or until this process ends."""
    _release()  # an earlier sweep of this process may have failed
    try:
        with _writable(option := "hydra.sweep.dir", folder):
            folder.mkdir(parents=True, exist_ok=True)
            _HELD.append(FolderLock(folder, option))
    except FolderTaken as error:
        raise SystemExit(f"error: {error}") from error


def _release() -> None:
    while _HELD:
        _HELD.pop().release()


def _end_launcher(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C in a parallel sweep: print how to continue, and end this process as if there were no handler."""
    _explain(lock.folder for lock in _HELD)  # even if no run has written a checkpoint yet, because they save now
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@atexit.register
def _explain_unfinished() -> None:
    _explain(lock.folder for lock in _HELD if _holds_runs(lock.folder))
    _release()


def _explain(folders: Iterable[Path]) -> None:
    """Print how to continue sweeps that end with this process; ``resume=RUN`` would continue one of their runs only."""
    for folder in folders:
        command = quote(f"hydra.sweep.dir={folder}")
        print(f"this sweep is not complete: repeat its command with {command} resume=auto", file=sys.stderr, flush=True)


def _holds_runs(folder: Path) -> bool:
    return any(holds_run(run) or (run / RESULT).exists() for run in folder.glob("*"))
