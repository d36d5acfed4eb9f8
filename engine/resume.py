"""Where a run starts: anew, from a checkpoint of its own, or from the newest one that fits."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from engine import checkpoint
from engine.checkpoint import Checkpoint

# What may change from one start of a run to the next: how, not what, it computes.
_FREE = ("resume", "device", "num_workers", "log_every", "save_every", "logger")


def fingerprint(config: DictConfig) -> str:
    """The same for two configurations that ask for the same training."""
    plain = OmegaConf.to_container(config, resolve=True)
    kept = {key: value for key, value in plain.items() if key not in _FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def find_start(config: DictConfig, folder: Path) -> tuple[Path, Checkpoint | None]:
    """The folder that a run writes into, and the checkpoint that it continues from, if any.

    Args:
        config: of the command line. ``resume`` is null, the folder of a run, or "auto": the newest intact checkpoint
            of this configuration in ``folder`` or in one beside it.
        folder: what a new run would write into.

    Raises:
        ValueError: further options beside a folder, whose run has its own configuration; no intact checkpoint there.
        FileNotFoundError: no checkpoint there.
    """
    if config.resume is None:
        return folder, None
    if config.resume == "auto":
        return _newest(fingerprint(config), folder)
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = [part for part in overrides if not part.startswith("resume=")]
    if given:
        raise ValueError(f"a resumed run keeps its own configuration: leave out {' '.join(given)}")
    folder = Path(config.resume).expanduser()
    for path in _own(folder) or [checkpoint.find(folder / checkpoint.LAST)]:
        if saved := _intact(path):
            return folder, saved
    raise ValueError(f"{folder} has no checkpoint that could be read: start the run anew")


def continued(config: DictConfig, saved: Checkpoint) -> DictConfig:
    """The configuration of the run that goes on: its own; with "auto", how it is run as ``config`` says now."""
    own = OmegaConf.create(saved.config)
    if config.resume == "auto":
        now = OmegaConf.to_container(config, resolve=True)
        own.update({key: now[key] for key in _FREE})
    return own


def _newest(identity: str, folder: Path) -> tuple[Path, Checkpoint | None]:
    runs = [folder, *(other for other in folder.parent.glob("*") if other != folder)]
    paths = [path for run in runs for path in _own(run)]
    others = 0
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        saved = _intact(path)
        if saved and saved.training.get("identity") == identity:
            _say(f"resume=auto: {path}, iteration {saved.iteration}")
            with suppress(OSError):  # a kill would leave it; one that holds anything stays
                folder.rmdir()
            return path.parent, saved
        others += saved is not None
    skipped = f", passed over {others} of other configurations" if others else ""
    _say(f"resume=auto: no checkpoint of this configuration in {folder.parent}{skipped}: a new run")
    return folder, None


def _own(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return [folder / name for name in (checkpoint.LAST, checkpoint.PREVIOUS) if (folder / name).is_file()]


def _intact(path: Path) -> Checkpoint | None:
    try:
        return checkpoint.load(path)
    except (ValueError, OSError) as error:
        _say(f"passed over {path}: {error}")
        return None


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # the processes of a run have not joined yet
        print(text)
