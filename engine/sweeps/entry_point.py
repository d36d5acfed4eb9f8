"""How an entry point starts and how it fails."""

import errno
import functools
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...data.loader import lost_worker
from ..runtime.distributed import is_first
from ..runtime.launchers import in_own_process, join_job, parallel_worker
from .results import write_result

_USER_ERRORS = (ValueError, OSError, MemoryError, InstantiationException, OmegaConfBaseException)


class entry_point:
    """Decorator that turns a user's mistake into one message and a non-zero exit, and leaves no empty folder behind.

    ``HYDRA_FULL_ERROR=1`` shows the whole traceback, as it does for Hydra's own messages. A run of a sweep that fails,
    by whatever error, is noted down and the sweep goes on; it has no score. Hydra's launchers may send what is
    decorated to another process, which imports its file anew.
    """

    def __init__(self, main: Callable[[DictConfig], Any]):
        self._main = main
        functools.update_wrapper(self, main)

    def __call__(self, config: DictConfig) -> Any:
        join_job()
        if parallel_worker() is None:
            return self._run(config)
        try:
            return in_own_process(functools.partial(self._run, config))
        except ChildProcessError as error:
            print(f"error: {error}", file=sys.stderr)
            return _note(str(error))

    def _run(self, config: DictConfig) -> Any:
        if not is_first():
            _remove_if_empty(_folder())  # named by a later second perhaps; the first process makes the one they use
        try:
            with _lost_workers():
                return self._main(config)
        except _USER_ERRORS as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            while isinstance(error, InstantiationException) and error.__cause__ is not None:
                error = error.__cause__  # what the class that Hydra called had to say
            print(f"{_process()}error: {_message(error)}\n(HYDRA_FULL_ERROR=1 shows where)", file=sys.stderr)
            if _in_sweep():
                lost = _process() and isinstance(error, ConnectionError)  # the other process notes why
                return None if lost else _note(_message(error))
            raise SystemExit(1) from error
        except Exception as error:
            if not _in_sweep():
                raise
            traceback.print_exc()
            return _note(f"{type(error).__name__}: {error}")
        finally:
            if is_first():  # from another process it might come just before the first file is written
                _remove_if_empty(_folder(), _folder().parent)

    def __reduce__(self) -> tuple[Callable, tuple[str, str]]:
        return _imported, (f"ccnet.{Path(inspect.getfile(self._main)).stem}", self.__name__)


def _imported(module: str, name: str) -> entry_point:
    return getattr(importlib.import_module(module), name).__wrapped__  # without what hydra.main put around it


@contextmanager
def _lost_workers() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not lost_worker(error):
            raise
        raise ChildProcessError(
            "a process that loads data is gone, most likely ended by the system because memory ran out: turn down "
            "num_workers or recipe.batch_size, or give the job more memory; a training goes on with resume=auto. "
            f"{error.__cause__ or error}"
        ) from error


def _in_sweep() -> bool:
    return not OmegaConf.is_missing(HydraConfig.get().job, "num")


def _note(message: str) -> None:
    write_result(_folder(), {"overrides": list(HydraConfig.get().overrides.task), "error": message})


def _process() -> str:
    """Which one of several processes is speaking."""
    return f"process {os.environ.get('RANK')}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


def _message(error: BaseException) -> str:
    """What the error says; out of a data worker, without the traceback that torch puts before it."""
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        return re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", text, flags=re.MULTILINE)[-1].strip()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text}: make space; a training then goes on with resume=auto"
    return text


def _folder() -> Path:
    """What Hydra has made for this run."""
    return Path(HydraConfig.get().runtime.output_dir)


def _remove_if_empty(*folders: Path) -> None:
    with suppress(OSError):  # rmdir refuses a folder that holds anything
        for folder in folders:
            folder.rmdir()
