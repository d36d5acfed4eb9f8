"""How an entry point starts and how it fails. Neither needs torch, so that a mistake is answered at once."""

import errno
import functools
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

from ..runtime.launchers import in_own_process, is_first, join_job, parallel_worker
from ..runtime.lost_workers import lost_worker
from .results import write_result

_USER_ERRORS = (ValueError, OSError, MemoryError, InstantiationException, OmegaConfBaseException)


def entry_point(main: Callable[[DictConfig], Any]) -> Callable[..., Any]:
    """Decorate `main` to turn a user's mistake into one message and exit code 1, and to leave no empty folder behind.

    ``HYDRA_FULL_ERROR=1`` shows the whole traceback, as it does for Hydra's own messages. If a run of a sweep fails,
    by whatever error, the error goes into its ``result.json`` and the sweep goes on; such a run has no score.
    """

    # hydra.main hands this function to the launcher. joblib and submitit pickle it with cloudpickle, which refers to
    # the functions of an importable module by name but copies everything that `__main__` defines. So an entry point
    # ends with `if __name__ == "__main__":`, imports its own main from ccnet and calls that one.
    @functools.wraps(main)
    def started(config: DictConfig) -> Any:
        join_job()
        run = functools.partial(_run, main, config)
        if parallel_worker() is None:
            return run()
        try:
            return in_own_process(run)
        except ChildProcessError as error:
            print(f"error: {error}", file=sys.stderr)
            return _record_failure(str(error))

    return started


def _run(main: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    if not is_first():
        _remove_if_empty(_folder())  # its name may hold a later second than the first process's, which all will use
    try:
        with _explain_lost_workers():
            return main(config)
    except _USER_ERRORS as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        while isinstance(error, InstantiationException) and error.__cause__ is not None:
            error = error.__cause__  # the error of the class that Hydra called
        print(f"{_process()}error: {_message(error)}\n(HYDRA_FULL_ERROR=1 shows where)", file=sys.stderr)
        if not _in_sweep():
            raise SystemExit(1) from error
        if _process() and isinstance(error, ConnectionError):
            return None  # the process that has gone records why
        return _record_failure(_message(error))
    except Exception as error:
        if not _in_sweep():
            raise
        traceback.print_exc()
        return _record_failure(f"{type(error).__name__}: {error}")
    finally:
        if is_first():  # another process might remove the folder just before the first file is written
            _remove_if_empty(_folder(), _folder().parent)


@contextmanager
def _explain_lost_workers() -> Iterator[None]:
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


def _record_failure(message: str) -> None:
    write_result(_folder(), {"error": message})


def _process() -> str:
    """Return a prefix that says which of several processes is speaking; empty if there is one."""
    return f"process {os.environ.get('RANK')}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


def _message(error: BaseException) -> str:
    """Return the error's text, without the traceback that torch prefixes to an error from a data worker."""
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        return re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", text, flags=re.MULTILINE)[-1].strip()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text}: make space; a training then goes on with resume=auto"
    return text


def _folder() -> Path:
    """Return the folder that Hydra has made for this run."""
    return Path(HydraConfig.get().runtime.output_dir)


def _remove_if_empty(*folders: Path) -> None:
    with suppress(OSError):  # rmdir fails on a folder that is not empty
        for folder in folders:
            folder.rmdir()
