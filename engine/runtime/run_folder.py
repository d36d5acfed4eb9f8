"""The folder of a run: its file names, and the lock that admits one process to it or to a folder of results.

Does not import torch.
"""

import errno
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .atomic_files import read_json

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

# The newest state of a run, the one before, its best weights, and its result once it is finished.
LAST, PREVIOUS, BEST, RESULT = "last.pt", "previous.pt", "best.safetensors", "result.json"
CONFIG = "config.yaml"  # the first file that a run writes
LOCK = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # the file system, or its server, does not support locks
_LEASE = 120.0  # seconds; a file server holds the locks of a dead machine for about 90
_HELD: set[int] = set()  # descriptors of the locks that this process holds


class FolderTaken(ValueError):
    """A folder is in use by another process, or holds another run."""


class FolderLock:
    """An exclusive lock on a folder of a run or of results, held until the ``with`` block ends or the process dies.

    The kernel releases the lock when the last descriptor of its file is closed, however the process ends. Forked
    processes, such as data workers, close their copy immediately, so that they cannot hold the lock after the run has
    died. On a network file system, the server enforces the lock between machines. If the file system does not support
    locks, a warning is printed instead.

    Args:
        folder: the folder, created if needed.
        option: the command-line option that selects the folder, for the error message.
        stem: lock only the files whose names start with it; others can be written to the folder at the same time.

    Raises:
        ValueError: the folder is a file, or would be inside one.
        FolderTaken: another process holds the lock. If it is on another machine, this process first waits for two
            minutes, because a file server holds the locks of a dead machine for a while.
    """

    def __init__(self, folder: Path, option: str = "hydra.run.dir", stem: str = ""):
        self.folder, self._locked, self._option = folder, folder / stem, option
        self._path = folder / (f"{stem}.lock" if stem else LOCK)
        self._descriptor = self._acquire()
        _HELD.add(self._descriptor)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # the lock is held even if the disk is full
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(about).encode())

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock and remove its file; do nothing if this is a forked process."""
        if self._descriptor in _HELD:
            with suppress(OSError):
                self._path.unlink()  # still locked: afterwards, the file may belong to another process
            _HELD.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _acquire(self) -> int:
        began, waiting = time.monotonic(), False
        while (descriptor := self._try()) is None:
            holder = read_json(self._path)  # {} if it has not written the file yet
            remote = holder.get("host", socket.gethostname()) != socket.gethostname()
            if time.monotonic() - began > (_LEASE if remote else 0 if holder else 1):
                raise FolderTaken(
                    f"{self._locked} is in use by {_named(holder)}: wait for it to end, or stop it, or choose another "
                    f"folder with {self._option}=DIR"
                )
            if remote and not waiting:
                waiting = True
                print(f"{self._locked} is in use by {_named(holder)}: waiting for {_LEASE:.0f} s", file=sys.stderr)
            time.sleep(5 if remote else 0.02)
        return descriptor

    def _try(self) -> int | None:
        """Return a descriptor of the locked file; None if another process has locked it."""
        while True:
            refuse_file(self.folder, self._option)
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # another process has just removed the empty folder
                continue
            try:
                if fcntl is None:
                    raise OSError(errno.ENOSYS, "Windows")
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    return descriptor
            except FileNotFoundError:  # its owner has just released it and removed the file
                pass
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    print(
                        f"{self._locked} cannot be locked ({error.strerror}): start no second process that "
                        "writes to it",
                        file=sys.stderr,
                    )
                    return descriptor
                os.close(descriptor)
                raise
            os.close(descriptor)


def refuse_file(folder: Path, option: str) -> None:
    """Raise ValueError if the folder that an option needs is a file, or would be inside one."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file, not a folder: choose another {option}")


def holds_run(folder: Path) -> bool:
    """Return True if a folder holds checkpoints, or the result of a run that did not fail."""
    return any((folder / name).exists() for name in (LAST, PREVIOUS, BEST)) or holds_result(folder)


def holds_result(folder: Path) -> bool:
    """Return True if a folder holds the result of a run that did not fail."""
    result = read_json(folder / RESULT)
    return bool(result) and "error" not in result


def foreign_files(folder: Path) -> list[str]:
    """Return the files in a folder without a run that a new run would overwrite, although no run has written them."""
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, IsADirectoryError):
        text = None
    # A run that was killed before its first checkpoint leaves its log; after a power cut, its files may be empty.
    if text is not None and ({"model:", "recipe:"} <= set(text.splitlines()) or not text.strip("\0\n")):
        return []
    names = (CONFIG, "train.csv", "val.csv", "val_classes.csv", "curves.png", "predictions.png")
    return [name for name in names if (folder / name).exists()]


def with_numbers(folder: Path) -> Iterator[Path]:
    """Yield `folder` and then its numbered siblings, for a run that needs a folder that no other run occupies."""
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}_{number}")


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that Hydra has created, unless it holds something.

    The current folder and those that contain it are kept: they are the user's, even if ``hydra.run.dir`` names them.
    """
    with suppress(OSError):  # rmdir fails on a folder that is not empty
        here = Path.cwd()
        if folder.resolve() not in (here, *here.parents):
            folder.rmdir()


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, which started at {holder.get('since')}"


def _close_inherited() -> None:
    for descriptor in _HELD:
        with suppress(OSError):
            os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
