"""Where a run starts: anew, from a checkpoint of its own, or from the newest one that fits."""

import hashlib
import itertools
import json
from contextlib import suppress
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write

from ..guards.settings import plain
from ..runtime.atomic_files import given_path
from ..runtime.launchers import is_first
from .reading import find, load
from .record import LAST, PREVIOUS, Checkpoint

# What may change from one start of a run to the next: how, not what, it computes; and what it may pass over.
_FREE = ("resume", "device", "num_workers", "log_every", "save_every", "logger", "skip_broken", "skip_nonfinite")


def fingerprint(config: DictConfig) -> str:
    """The same for two configurations that ask for the same training."""
    kept = {key: value for key, value in plain(config).items() if key not in _FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def continued(config: DictConfig, saved: Checkpoint) -> DictConfig:
    """The configuration to go on with from ``saved``: its own, in what is computed, and in how as the command says.

    Args:
        config: of the command line.
    """
    given = [override.partition("=")[0].lstrip("+") for override in _overrides()]
    said = [key for key in _FREE if config.resume == "auto" or any(key == own.partition(".")[0] for own in given)]
    now = plain(config)
    return OmegaConf.create(saved.config | {key: now[key] for key in said if key != "resume"})


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def find_start(config: DictConfig, folder: Path) -> tuple[Path, Checkpoint | None]:
    """The folder that a run writes into, and the checkpoint that it continues from, if any.

    Args:
        config: of the command line. ``resume`` is null, the folder of a run, or "auto": the newest intact checkpoint
            of this configuration in ``folder`` or in one beside it.
        folder: what a new run would write into.

    Raises:
        ValueError: options beside a folder that would change what its run computes; no intact checkpoint there.
        FileNotFoundError: no checkpoint there.
    """
    if config.resume is None:
        return folder, None
    if config.resume == "auto":
        folder, saved = _newest(fingerprint(config), folder)
        if HydraConfig.initialized():
            runtime = HydraConfig.get().runtime
            with read_write(runtime):
                runtime.output_dir = str(folder)  # where an error of this run is noted
        return folder, saved
    given = [part for part in _overrides() if part.partition("=")[0].partition(".")[0] not in _FREE]
    if given:
        raise ValueError(f"a resumed run keeps its own configuration: leave out {' '.join(given)}")
    folder = given_path(config.resume)
    for path in _own(folder) or [find(folder / LAST)]:
        if saved := _intact(path):
            return folder, saved
    raise ValueError(f"{folder} has no checkpoint that could be read: start the run anew")


def _newest(identity: str, folder: Path) -> tuple[Path, Checkpoint | None]:
    runs = [folder, *(other for other in folder.parent.glob("*") if other != folder)]
    others = 0
    # A sweep started again finds each run in its own folder; the runs beside it may be under way in other processes.
    paths = [path for run in runs for path in _own(run)]
    for path in sorted(paths, key=lambda path: (path.parent != folder, _age(path))):
        whose = _identity(path)
        if whose not in (identity, None):
            others += 1
        elif (saved := _intact(path)) and saved.training.get("identity") == identity:
            _say(f"resume=auto: {path}, iteration {saved.iteration}")
            with suppress(OSError):  # a kill would leave it; one that holds anything stays
                folder.rmdir()
            return path.parent, saved
    skipped = f", passed over {others} of other configurations" if others else ""
    _say(f"resume=auto: no checkpoint of this configuration in {folder.parent}{skipped}: a new run")
    return _free(folder), None


def _own(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]


def _age(path: Path) -> int:
    """The smaller, the newer."""
    try:
        return -path.stat().st_mtime_ns
    except FileNotFoundError:  # its run has just written the next one
        return 0


def _identity(path: Path) -> str | None:
    """Whose checkpoint it is, by a glance that reads no tensor; None if it cannot tell."""
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)["training"]["identity"]
    except Exception:  # of a damaged file, whatever; the full reading says what it is
        return None


def _free(folder: Path) -> Path:
    """``folder``, or one beside it where another configuration has left its run there: sweeps may be extended."""
    numbered = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not _own(path))


def _intact(path: Path) -> Checkpoint | None:
    try:
        saved = load(path)
        if not saved.training:
            raise ValueError("it holds weights and no state of a training, start from them with init=FILE")
        return saved
    except (ValueError, OSError) as error:
        _say(f"passed over {path}: {error}")
        return None


def _say(text: str) -> None:
    if is_first():
        print(text)
