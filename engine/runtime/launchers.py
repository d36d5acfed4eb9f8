"""The processes that torchrun and Hydra's launchers start: joblib's on one machine, submitit's under Slurm.

Nothing here needs torch, so that an entry point starts, and fails, without loading it.
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
    """Return True in the first of the processes that were started, even before they have joined."""
    return os.environ.get("RANK", "0") == "0"


def join_job() -> None:
    """Export a submitit job's ranks and addresses as torchrun does, so that its processes find each other."""
    if "SUBMITIT_EXECUTOR" in os.environ and "RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        job = TorchDistributedEnvironment()
        if job.world_size > 1:
            job.export(set_cuda_visible_devices=False)


def parallel_worker() -> int | None:
    """Return the index of this process among those of joblib's launcher; None elsewhere."""
    worker = re.fullmatch(r"LokyProcess-(\d+)", multiprocessing.current_process().name)
    return int(worker[1]) - 1 if worker else None


def in_own_process(run: Callable[[], T]) -> T | None:
    """Call `run` in a child process and return its result.

    If the child is killed, joblib's other processes and the sweep live on. If the sweep itself ends, the child receives
    SIGTERM, and so saves.

    Raises:
        ChildProcessError: the process has ended without a result.
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
        raise ChildProcessError(f"{_ended(process.exitcode)}: start the sweep again with resume=auto")
    return result


def _ended(code: int) -> str:
    if code == EXIT_CODE:
        return "stopped and saved"
    if code > 0:
        return f"ended with {code}"
    return f"ended by {signal.Signals(-code).name}, as the system does when memory runs out"


def _send(run: Callable[[], T], sender: Connection) -> None:
    _end_with_parent()
    sender.send(run())


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
