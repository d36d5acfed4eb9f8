"""Decide where a run starts: from scratch, from a given run's checkpoint, or from the newest one that matches."""

import hashlib
import itertools
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write

from ..guards.former_names import former_names
from ..guards.settings import plain
from ..runtime.atomic_files import given_path
from ..runtime.launchers import is_first
from .reading import find, load
from .record import LAST, PREVIOUS, Checkpoint
from .wandb_account import own_account

# Settings that may change when a run is resumed: those for how it computes, not what, and for what it may skip.
_FREE = (
    "resume", "device", "num_workers", "log_every", "save_every", "logger", "skip_broken", "skip_nonfinite",
    "collective_timeout", "allow_env",
)  # fmt: skip


def fingerprint(config: DictConfig) -> str:
    """Return a hash that is the same for configurations that describe the same training run."""
    kept = {key: value for key, value in plain(config).items() if key not in _FREE}
    # Former names preserve the hashes in the checkpoints of earlier versions, so that resume=auto finds those too.
    return hashlib.sha256(json.dumps(former_names(kept), sort_keys=True).encode()).hexdigest()


def continued(config: DictConfig, saved: Checkpoint) -> DictConfig:
    """Return the configuration to resume with: the checkpoint's, but with run-time settings from the command line.

    Args:
        config: the command line's configuration.
        saved: the checkpoint to resume from.
    """
    given = {_group(override) for override in _overrides()}
    taken = [key for key in _FREE if key != "resume" and (config.resume == "auto" or key in given)]
    now = plain(config)
    account = {} if "logger" in taken else own_account(saved, now)
    return OmegaConf.create(saved.config | account | {key: now[key] for key in taken})


def find_start(config: DictConfig, folder: Path) -> tuple[Path, Checkpoint | None]:
    """Return the folder that a run writes to, and the checkpoint that it resumes from, if any.

    Args:
        config: the command line's configuration. ``resume`` is null, a run's folder, or "auto" for the newest intact
            checkpoint of this configuration in ``folder`` or one of its sibling folders.
        folder: the folder that a new run would write to.

    Raises:
        ValueError: options passed with ``resume=FOLDER`` would change what the run computes, or that folder has no
            intact checkpoint.
        FileNotFoundError: that folder has no checkpoint.
    """
    if config.resume is None:
        return folder, None
    if config.resume == "auto":
        folder, saved = _newest(fingerprint(config), folder)
        if HydraConfig.initialized():
            runtime: Any = HydraConfig.get().runtime
            with read_write(runtime):
                runtime.output_dir = str(folder)  # where an error of this run is recorded
        return folder, saved
    changed = [override for override in _overrides() if _group(override) not in _FREE]
    if changed:
        raise ValueError(f"a resumed run keeps its own configuration: remove {' '.join(changed)}")
    folder = given_path(config.resume)
    saved = _first_intact(_own(folder) or [find(folder / LAST)])
    if saved is None:
        raise ValueError(f"{folder} has no readable checkpoint: start a new run")
    return folder, saved


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _group(override: str) -> str:
    """Return the first part of an override's name: "logger" for ``logger.group=a``."""
    return override.partition("=")[0].partition(".")[0]


def _newest(identity: str, folder: Path) -> tuple[Path, Checkpoint | None]:
    """Return the run that ``resume=auto`` continues and its checkpoint, or an unused folder for a new run and None."""
    runs = [folder, *(other for other in folder.parent.glob("*") if other != folder)]
    # A restarted sweep finds each run in its own folder; the runs beside it may be active in other processes.
    paths = sorted(
        (path for run in runs for path in _own(run)),
        key=lambda path: (path.parent != folder, _age(path)),
    )
    others = 0
    for path in paths:
        whose = _identity(path)
        if whose not in (identity, None):
            others += 1
        elif (saved := _intact(path)) and saved.training["identity"] == identity:
            _say(f"resume=auto: {path}, iteration {saved.iteration}")
            with suppress(OSError):  # removes it only if empty, before a kill could leave it behind
                folder.rmdir()
            return path.parent, saved
    skipped = f", skipped {others} of other configurations" if others else ""
    _say(f"resume=auto: no checkpoint of this configuration in {folder.parent}{skipped}: starting a new run")
    return _free(folder), None


def _own(folder: Path) -> list[Path]:
    """Return the checkpoints of the run in ``folder``, newest first."""
    return [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]


def _age(path: Path) -> int:
    """Return a sort key that puts newer files first."""
    try:
        return -path.stat().st_mtime_ns
    except FileNotFoundError:  # its run has just replaced it
        return 0


def _identity(path: Path) -> str | None:
    """Return the fingerprint stored in a checkpoint, or None if it cannot be read.

    Most of the checkpoints may belong to other configurations. This function therefore memory-maps the file without
    reading any tensor, and :func:`load` reopens the few that match.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)["training"]["identity"]
    except Exception:  # each kind of damage raises a different error; load() reports it
        return None


def _free(folder: Path) -> Path:
    """Return ``folder``, or a numbered sibling if a different run occupies it, as when a sweep is extended."""
    numbered = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not _own(path))


def _first_intact(paths: Iterable[Path]) -> Checkpoint | None:
    return next((saved for path in paths if (saved := _intact(path))), None)


def _intact(path: Path) -> Checkpoint | None:
    """Return a run's checkpoint; if the run cannot be resumed from it, print the reason and return None."""
    try:
        saved = load(path)
        if not saved.training:
            raise ValueError("it contains weights but no training state; use init=FILE to start from them")
        return saved
    except (ValueError, OSError) as error:
        _say(f"skipped {path}: {error}")
        return None


def _say(text: str) -> None:
    """Print a line on rank 0 only."""
    if is_first():
        print(text)
