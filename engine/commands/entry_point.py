"""Start entry points and report their errors, without importing torch, so that a user error fails immediately.

The order is: check and rewrite the arguments, let Hydra compose the configuration, check it, run, report an error.
"""

import argparse
import errno
import functools
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ...conf import CONF
from ..guards.setting_types import BOUNDS, check_bounds
from ..runtime.launchers import in_own_process, is_first, is_one_of_several, join_job, parallel_worker
from ..runtime.lost_workers import lost_worker
from ..runtime.overrides import in_sweep
from ..runtime.run_folder import FolderLock, FolderTaken, holds_result, holds_run, remove_if_empty, with_numbers
from ..sweeps.results import write_result
from .arguments import accepted, check_overrides
from .help_text import commented_config, config_groups
from .option_bounds import OPTION_BOUNDS
from .similar_options import similar_options
from .unread_options import refuse_unread

for _resolver in (commented_config, config_groups):  # for conf/hydra/help
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)

# For every group that exists, --help copies the store, which Hydra only reads. This took two thirds of the time.
ConfigStore.__deepcopy__ = lambda self, memo: self

_INTERRUPTED = 130  # exit code of shells for programs that Ctrl-C ends
_USER_ERRORS = (ValueError, OSError, MemoryError, InstantiationException, OmegaConfBaseException)


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[..., Any]]:
    """Decorate the main function of a command, which Hydra calls with the configuration of the command line.

    A user error produces a single message and exit code 1, and leaves no empty folder. Ctrl-C produces a single message
    too, and exit code 130, unless the function handles it. ``HYDRA_FULL_ERROR=1`` shows the full traceback, as it does
    for Hydra's own errors.

    If a run of a sweep fails for any reason, the error is recorded in its ``result.json`` and the sweep continues; such
    a run has no score.

    Args:
        config_name: the file in ``conf/`` that the command starts from.
    """

    def decorated(main: Callable[[DictConfig], Any]) -> Callable[..., Any]:
        # hydra.main passes this function to the launcher. joblib and submitit pickle it with cloudpickle, which pickles
        # functions of importable modules by reference but everything defined in `__main__` by value. An entry point
        # therefore ends with `if __name__ == "__main__":`, where it imports its own main from ccnet and calls that.
        @functools.wraps(main)
        def started(config: DictConfig) -> Any:
            join_job()
            _accept_any_text()  # again, in the process of a launcher
            run = functools.partial(_run, main, config)
            if parallel_worker() is None:
                return run()
            from ...models import segmentor  # noqa: F401, takes seconds: once per worker, not in the process of each run

            try:
                return in_own_process(run)
            except ChildProcessError as error:
                print(f"error: {error}", file=sys.stderr)
                return _record_failure(str(error))

        with_hydra = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
        return _with_command_line(with_hydra(started), config_name)

    return decorated


def _with_command_line(main: Callable[..., Any], config_name: str) -> Callable[..., Any]:
    """Return a function that calls what ``hydra.main`` has returned with arguments that Hydra accepts.

    :func:`~ccnet.engine.commands.arguments.accepted` rewrites them. An invalid argument ends the program with a
    message, a mistyped option with those that may have been meant.
    """

    @functools.wraps(main)
    def called(*given: Any) -> Any:
        _accept_lazy_help()
        _accept_any_text()
        given_arguments = sys.argv
        try:
            check_overrides(given_arguments[1:])
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        sys.argv = [given_arguments[0], *accepted(given_arguments[1:])]
        try:
            result = main(*given)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            raise _interrupted() from None
        except BrokenPipeError:  # --help | head: the reader has ended, and Python must not flush the rest at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except SystemExit as error:
            if error.code == 1 and (hint := similar_options(sys.argv[1:], config_name)):
                print(hint, file=sys.stderr)
            raise
        finally:
            sys.argv = given_arguments

    return called


def _accept_lazy_help() -> None:
    """Let argparse accept the help of Hydra's --shell-completion, which is an object that only renders as a string.

    Since Python 3.14, argparse checks the help of every option, and Hydra, up to at least 1.3.8, does not start.
    """
    parser: Any = argparse.ArgumentParser
    if hasattr(parser, "_check_help"):
        parser._check_help = lambda self, action: None


def _accept_any_text() -> None:
    """Let stdout print characters outside its encoding as escapes, as stderr does, instead of raising an error.

    Names of classes and files may hold any character, but the encoding of a pipe or a log file on Windows lacks most.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(main: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    if not is_first():
        remove_if_empty(_folder())  # its timestamp may differ from that of rank 0's folder, which all ranks use
    logging.getLogger("huggingface_hub").propagate = False  # it prints by itself, so Hydra would print it again
    logging.getLogger("jax").setLevel(logging.WARNING)  # at Hydra's level, INFO, it reports that there is no TPU
    try:
        check_bounds(config, BOUNDS | OPTION_BOUNDS)
        refuse_unread(config, HydraConfig.get().job.config_name or "")
        with _explain_lost_workers():
            return main(config)
    except KeyboardInterrupt:
        raise _interrupted() from None
    except _USER_ERRORS as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        while isinstance(error, InstantiationException) and error.__cause__ is not None:
            error = error.__cause__  # the error raised by the class that Hydra instantiated
        print(f"{_process()}error: {_message(error)}\n(set HYDRA_FULL_ERROR=1 for the traceback)", file=sys.stderr)
        if isinstance(error, FolderTaken) or not in_sweep():  # two identical sweeps: the other one executes this run
            raise SystemExit(1) from error
        if _process() and isinstance(error, ConnectionError):
            return None  # the process that died records why
        return _record_failure(_message(error))
    except Exception as error:
        if not in_sweep():
            raise
        traceback.print_exc()
        return _record_failure(f"{type(error).__name__}: {error}")
    finally:
        if is_first():  # any other rank might remove the folder just before rank 0 writes to it
            remove_if_empty(_folder())
            remove_if_empty(_folder().parent)


@contextmanager
def _explain_lost_workers() -> Generator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not lost_worker(error):
            raise
        raise ChildProcessError(
            "a data-loading worker has died, most likely killed by the system because memory ran out: reduce "
            "num_workers or recipe.batch_size, or give the job more memory; resume=auto continues a training run. "
            f"{error.__cause__ or error}"
        ) from error


def _record_failure(message: str) -> None:
    """Record the error as the result of the run, unless its folder is in use by another run.

    Raises:
        SystemExit: the error cannot be recorded, for example because the disk is full.
    """
    folder = _free_of_results()
    try:
        with suppress(FolderTaken), FolderLock(folder) if is_first() else nullcontext():
            write_result(folder, {"error": message})
    except OSError as error:
        print(f"{_process()}error: the failure of this run cannot be recorded: {_message(error)}", file=sys.stderr)
        raise SystemExit(1) from error


def _free_of_results() -> Path:
    """Return this run's folder, or a numbered sibling if it holds the result of another run.

    This happens in an extended sweep if the run fails before ``resume=auto`` has chosen its folder.
    """
    own = _folder()
    return next(path for path in with_numbers(own) if not (holds_result if path == own else holds_run)(path))


def _interrupted() -> BaseException:
    """Print that the program was interrupted, and return the exception that ends it.

    ``HYDRA_FULL_ERROR=1`` shows the traceback instead.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        return KeyboardInterrupt()
    print(f"{_process()}interrupted", file=sys.stderr)
    return SystemExit(_INTERRUPTED)


def _process() -> str:
    """Return a message prefix with the rank of this process; empty if there is only one process."""
    return f"process {os.environ.get('RANK')}: " if is_one_of_several() else ""


def _message(error: BaseException) -> str:
    """Return the error message, with what to do, and without the traceback of data-loading workers from torch."""
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        return re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", text, flags=re.MULTILINE)[-1].strip()
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set: set {error.full_key}=VALUE; --help describes it"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text}: free some disk space; resume=auto then continues a training run"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{text}: choose an output folder that you may write to"
    if isinstance(error, PermissionError) and error.filename:
        return f"{text}: change its permissions, or choose a path that you may read and write"
    return text


def _folder() -> Path:
    """Return the output folder that Hydra created for this run."""
    return Path(HydraConfig.get().runtime.output_dir)
