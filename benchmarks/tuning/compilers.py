"""Processes that compile in parallel; one that crashes or takes too long is replaced and costs only its own job."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ..failures import first_line

_SPAWN = multiprocessing.get_context("spawn")  # a forked process could not use the parent's CUDA context


class Compilers:
    """Processes that run one function on many arguments.

    Args:
        function: a module-level function, which each process imports; its exceptions are returned as messages.
        processes: the number of processes.
        seconds: the time limit for one call.
    """

    def __init__(self, function: Callable[[Any], Any], processes: int, seconds: float):
        self.function, self.seconds = function, seconds
        self._threads = ThreadPoolExecutor(processes)  # each waits for a process of its own
        self._own = threading.local()
        self._started: list[Any] = []

    def __enter__(self) -> "Compilers":
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel the calls that have not started and kill all processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._started:
            _kill(process)
        self._threads.shutdown()

    def submit(self, argument: Any) -> "Future[Any]":
        """Queue a call; the future returns the function's result, or a string that says why there is none."""
        return self._threads.submit(self._call, argument)

    def _call(self, argument: Any) -> Any:
        process = None
        try:
            process, connection = self._process()
            connection.send(argument)
            if not connection.poll(self.seconds):
                _kill(process)
                self._own.process = None
                return f"took longer than {self.seconds:.0f} s"
            return connection.recv()
        except (EOFError, OSError) as error:
            self._own.process = None
            if process is None:
                return f"the compiler did not start: {error}"
            process.join()
            return f"ended its process with exit code {process.exitcode}"

    def _process(self) -> tuple[Any, Any]:
        """Return this thread's process, started if necessary, and the connection to it."""
        if getattr(self._own, "process", None) is None:
            ours, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(target=_serve, args=(self.function, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the connection ends when the process does
            self._started.append(process)
            ours.recv()  # wait for the start, which is not part of the time limit
            self._own.process = process, ours
        return self._own.process


def _serve(function: Callable[[Any], Any], connection: Any) -> None:
    os.setpgrp()  # so that killing the group also ends the assembler that it may have started
    connection.send("started")
    with suppress(EOFError):  # the parent has ended
        while True:
            argument = connection.recv()
            try:
                connection.send(function(argument))
            except Exception as error:  # compilers raise many exception types
                connection.send(first_line(error))


def _kill(process: Any) -> None:
    if process.is_alive():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # in case it has no process group of its own yet
        process.join()
