"""Support for processes started by torchrun or by Hydra's launchers: joblib on one machine, submitit under Slurm.

Nothing here imports torch, so that an entry point can start, or fail, without loading it.
"""

import ctypes
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

from .stop_signals import EXIT_CODE

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def is_first() -> bool:
    """Return True on rank 0, even before the process group is initialised."""
    return not is_one_of_several() or os.environ.get("RANK", "0") == "0"


def is_one_of_several() -> bool:
    """Return True if this process is one of several that train together, as under torchrun."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdecimal() and int(size) > 1


def shows_bars() -> bool:
    """Return True if progress bars are shown on the first process: stderr is a terminal, or this is a notebook.

    Both redraw a bar in place; a log file would keep every state of it.
    """
    return is_first() and (sys.stderr.isatty() or "ipykernel" in sys.modules)


def join_job() -> None:
    """Export a submitit job's rank and address variables as torchrun does, so that its processes find each other."""
    if "SUBMITIT_EXECUTOR" in os.environ and "RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        job = TorchDistributedEnvironment()
        if job.world_size > 1:
            job.export(set_cuda_visible_devices=False)


def parallel_worker() -> int | None:
    """Return the index of this process among the workers of the joblib launcher; None outside a parallel sweep."""
    worker = re.fullmatch(r"LokyProcess-(\d+)", multiprocessing.current_process().name)
    return int(worker[1]) - 1 if worker else None


def in_own_process(run: Callable[[], T]) -> T | None:
    """Call `run` in a child process, or directly if this is not Linux, and return its result.

    If the child is killed, the other joblib workers and the sweep continue. If the sweep itself ends, the child
    receives SIGTERM and saves a checkpoint.

    Raises:
        ChildProcessError: the child process ended without returning a result.
    """
    if sys.platform != "linux":
        return run()
    _end_with_parent()
    context = multiprocessing.get_context("fork")  # safe: this process has not initialised CUDA
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(run, sender), name=multiprocessing.current_process().name)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    process.join()
    if process.exitcode:
        raise ChildProcessError(f"{_ended(process.exitcode)}: restart the sweep with resume=auto")
    return result


def _ended(code: int) -> str:
    if code == EXIT_CODE:
        return "stopped and saved"
    if code > 0:
        return f"exited with code {code}"
    return f"killed by {signal.Signals(-code).name}, as happens when the system runs out of memory"


def _send(run: Callable[[], T], sender: Connection) -> None:
    _end_with_parent()
    sender.send(run())


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
