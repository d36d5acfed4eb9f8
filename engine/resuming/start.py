"""Decide where a run starts: from scratch, or from a checkpoint of the same run in a given or a sibling folder.

From then on, the folder of the run is locked, so that no other process can write to it.
"""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write

from ...data import build_dataset
from ..checkpoints.options import flat
from ..checkpoints.reading import load, peek
from ..checkpoints.record import Checkpoint
from ..runtime.atomic_files import given_path
from ..runtime.distributed import from_all, from_first, rank
from ..runtime.overrides import given_options, in_sweep
from ..runtime.run_folder import (
    BEST,
    LAST,
    PREVIOUS,
    FolderLock,
    FolderTaken,
    foreign_files,
    holds_run,
    remove_if_empty,
    with_numbers,
)
from .contents import data_contents
from .continuation import check_given
from .identity import LENGTH, RequestedRun


class Start(NamedTuple):
    """Where a run starts.

    Attributes:
        folder: the folder of the run.
        saved: the checkpoint to resume from; None for a new run.
    """

    folder: Path
    saved: Checkpoint | None


class _FoundRun(NamedTuple):
    """A run in the folder that the command line names, or in one beside it.

    Attributes:
        folder: its folder.
        iteration: the number of its iterations.
        is_shorter: whether it is shorter than the run that the command line describes.
        differences: see :meth:`.identity.RequestedRun.differences`; only a run without any may be continued.
    """

    folder: Path
    iteration: int
    is_shorter: bool
    differences: list[str]


@contextmanager
def find_start(config: DictConfig, folder: Path) -> Generator[Start]:
    """Lock the folder of a run for the duration of the block, and yield it with the checkpoint to resume from.

    All processes of the run must call this; the first one decides for all.

    Args:
        config: the command line's configuration. ``resume`` is null, a run's folder, or "auto" for the checkpoint of
            the same run (see :mod:`.identity`) in ``folder`` or beside it.
        folder: the folder that a new run would write to.

    Raises:
        FolderTaken: the folder is in use by another process, or a new run would overwrite another one.
        ValueError: options passed with ``resume=FOLDER`` would change what the run computes, or no checkpoint in that
            folder is intact.
        FileNotFoundError: the folder in ``resume=FOLDER`` has no checkpoint.
        OSError: a checkpoint cannot be read, for a reason that may be temporary.
    """
    with ExitStack() as held:
        start = Start(folder, None) if rank() else _find(config, folder, held)
        folder, path = from_first((start.folder, start.saved.source if start.saved else None))
        saved = load(path) if rank() and path else start.saved
        iterations = from_all(saved.iteration if saved else 0)
        if len(set(iterations)) > 1:
            raise ValueError(
                f"processes found checkpoints of different iterations, {iterations}: all machines must see the run's "
                "folder"
            )
        yield Start(folder, saved)


def preview(config: DictConfig) -> DictConfig:
    """Return a configuration with the framework and device of a run, which are needed before its processes join."""
    if config.resume in (None, "auto"):
        return config
    saved = newest(given_path(config.resume)).config
    device = config.device if "device" in given_options() else saved.get("device", config.device)
    return OmegaConf.create({"framework": saved.get("framework", "torch"), "device": device})


def newest(folder: Path) -> Checkpoint:
    """Return the newest state of a run without its tensors; see :func:`ccnet.engine.checkpoints.reading.peek`.

    Raises:
        FileNotFoundError: the folder has no checkpoint.
        ValueError: none of its checkpoints can be read.
    """
    states = [path for path in _states(folder) if path.is_file()]
    if not states:
        raise FileNotFoundError(_without_state(folder))
    if readable := _peeks(folder, quiet=True):
        return readable[0]
    raise _unreadable(states[0])


def _find(config: DictConfig, folder: Path, held: ExitStack) -> Start:
    """Return where a run starts, with its folder locked until `held` closes; called by the first process only."""
    if config.resume == "auto":
        start = _same_run(config, folder, held)
        if HydraConfig.initialized():
            runtime: Any = HydraConfig.get().runtime
            with read_write(runtime):
                runtime.output_dir = str(start.folder)  # where an error of this run is recorded
        if start.folder != folder:
            remove_if_empty(folder)  # before a kill could leave it behind
        return start
    if config.resume is None:
        held.enter_context(FolderLock(folder))
        if holds_run(folder):
            raise FolderTaken(
                f"{folder} already holds a run, which a new one would overwrite: continue it with "
                f"{quote(f'resume={folder}')}, or choose another folder with hydra.run.dir=DIR (in Python: "
                "folder=DIR; for a sweep: continue it with resume=auto, or choose hydra.sweep.dir=DIR)"
            )
        _refuse_foreign(folder)
        return Start(folder, None)
    check_given(given_options())
    folder = given_path(config.resume)
    newest(folder)  # raises an error before a lock could create the folder
    held.enter_context(FolderLock(folder))
    saved = _first_intact(folder)
    if saved is None:
        raise _unreadable(folder / LAST)
    return Start(folder, saved)


def _same_run(config: DictConfig, folder: Path, held: ExitStack) -> Start:
    """Return the run that ``resume=auto`` continues, or an unused folder for a new one."""
    found = _find_runs(config, folder)
    same = [run for run in found if not run.differences]
    others = [run for run in found if run.differences]
    for run in sorted(same, key=lambda run: (run.is_shorter, run.folder != folder, -run.iteration)):
        try:
            lock = FolderLock(run.folder)
        except FolderTaken as error:
            # In a sweep, two runs may have the same identity. A shorter run may be complete as it is.
            if run.folder != folder and (in_sweep() or run.is_shorter):
                print(f"resume=auto: skipped {run.folder}, which is in use")
                continue
            raise FolderTaken(f"this run is already being trained: {error}") from error
        with ExitStack() as unused:
            unused.enter_context(lock)
            if saved := _first_intact(run.folder):
                held.push(unused.pop_all())
                print(f"resume=auto: {saved.source}, iteration {saved.iteration}")
                return Start(run.folder, saved)
    start = Start(_free(folder, held), None)
    skipped = f", skipped {len(others)} of other configurations" if others else ""
    print(f"resume=auto: no checkpoint of this run in {folder.parent}{skipped}: starting a new run in {start.folder}")
    if others:
        nearest = min(others, key=lambda run: (len(run.differences), -run.iteration))
        more = f" and {len(nearest.differences) - 3} more" if len(nearest.differences) > 3 else ""
        shown = ", ".join(nearest.differences[:3]) + more
        print(f"the most similar one, {nearest.folder} at iteration {nearest.iteration}, has {shown}")
    return start


def _find_runs(config: DictConfig, folder: Path) -> list[_FoundRun]:
    """Return the runs in the folder and its siblings, compared with the run of the command line."""
    requested = RequestedRun(config, given_options(), lambda: _data_contents(config))
    found = []
    siblings = (path for path in sorted(folder.parent.glob("*")) if path != folder and os.access(path, os.X_OK))
    for run in (folder, *siblings):
        peeks = _peeks(run)
        if not peeks:
            continue
        length = flat(peeks[0].config).get(LENGTH, requested.length)
        differences = requested.differences(peeks[0])
        # A sweep may vary the length, so it never extends a shorter run, which may be another of its own.
        if length > requested.length or (length < requested.length and in_sweep()):
            differences.insert(0, f"{LENGTH}={length} instead of {requested.length}")
        iteration = peeks[0].iteration or 0
        found.append(_FoundRun(run, iteration, length < requested.length, differences))
    return found


def _free(folder: Path, held: ExitStack) -> Path:
    """Lock and return ``folder``, or a numbered sibling if a different run occupies it, as when a sweep is extended."""
    for path in with_numbers(folder):
        if holds_run(path):
            continue
        try:
            lock = FolderLock(path)
        except FolderTaken:
            if path == folder:
                raise
            continue
        if not holds_run(path):  # another process may have used the folder in the meantime
            held.enter_context(lock)
            _refuse_foreign(path)
            return path
        lock.release()
    raise AssertionError("unreachable")


def _refuse_foreign(folder: Path) -> None:
    """Raise FolderTaken if a new run would overwrite files that are not those of a run."""
    if names := foreign_files(folder):
        raise FolderTaken(
            f"{folder} holds {', '.join(names)}, not written by a run, which a new run would overwrite: choose another "
            "folder with hydra.run.dir=DIR (in Python: folder=DIR; for a sweep: hydra.sweep.dir=DIR)"
        )


def _data_contents(config: DictConfig) -> dict[str, str]:
    return data_contents(*(build_dataset(config.dataset, split, None) for split in ("train", "val")))


def _states(folder: Path) -> list[Path]:
    return [folder / name for name in (LAST, PREVIOUS)]


def _peeks(folder: Path, *, quiet: bool = False) -> list[Checkpoint]:
    """Return the states of the run in ``folder`` without their tensors, most iterations first.

    Damaged states are skipped. Errors that may be temporary are raised, because they must not make a run start over.
    """
    peeks = []
    for path in _states(folder):
        try:
            peeks.append(peek(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (ValueError, PermissionError) as error:
            if not quiet:
                print(f"skipped {path}: {error}")
    return sorted(peeks, key=lambda saved: -(saved.iteration or 0))


def _first_intact(folder: Path) -> Checkpoint | None:
    """Return the newest state of the run in ``folder`` whose checksums are correct; None if there is none."""
    for light in _peeks(folder):
        try:
            return load(light.source or folder / LAST)
        except (ValueError, FileNotFoundError) as error:
            print(f"skipped {light.source}: {error}")
    return None


def _without_state(folder: Path) -> str:
    """Return the message for a folder, as in ``resume=FOLDER``, that has no state of a run."""
    if any(path.is_file() for path in _states(folder.parent)):
        return f"resume={folder} must be the folder of a run, not a file in it: set {quote(f'resume={folder.parent}')}"
    message = f"there is no checkpoint {folder / LAST}, from which a run could continue"
    if (folder / BEST).is_file():
        return f"{message}: start a new run from the weights in {folder / BEST} with {quote(f'init={folder}/best')}"
    return f"{message}: resume=FOLDER expects the folder of a run"


def _unreadable(path: Path) -> ValueError:
    """Return the error for a run without a readable state, with the reason why `path` cannot be read."""
    reason = ""
    try:
        load(path)
    except (ValueError, OSError) as error:
        reason = f" ({error})"
    return ValueError(f"{path.parent} has no readable checkpoint: start a new run{reason}")
