"""End a run when a cluster or a person asks for it, with nothing lost."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODE = 75  # "try again later" of sysexits.h: the run is saved and can be resumed
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_REQUEUE = signal.SIGUSR2  # sent by Slurm, through submitit, when a job's time is nearly over
_ECHO = 1.0  # seconds: a cluster signals every process, and torchrun passes the signal on to its workers again


class Stopped(SystemExit):
    """Raised when the run was asked to stop and its checkpoint is written."""


class StopRequest:
    """Remembers the first SIGTERM or SIGINT within its ``with`` block; a second one ends the process at once.

    It also remembers SIGUSR2 if submitit handles it. Submitit's handler, which puts the job back into the queue, is
    called once the run is saved. Signals within a second of the first belong to the same request, because wrappers
    pass on signals that all processes receive anyway.

    Attributes:
        received: the name of the signal, or None.
    """

    def __init__(self):
        self.received: str | None = None
        self._raise, self._since = False, 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            numbers = (*_SIGNALS, _REQUEUE) if callable(signal.getsignal(_REQUEUE)) else _SIGNALS
            self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        if self.received:
            time.sleep(max(0.0, self._since + _ECHO - time.monotonic()))
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise :class:`Stopped` in the middle of the block, whose work may be lost, when a request arrives."""
        self._raise = True
        try:
            if self.received:
                self.stop()
            yield
        except Exception as error:
            if self.received:  # the signal has also ended a process that this one waits for
                raise Stopped(EXIT_CODE) from error
            raise
        finally:
            self._raise = False

    def stop(self) -> None:
        """Raise :class:`Stopped`, after submitit's own handler if it was SIGUSR2."""
        if self.received == _REQUEUE.name and os.getpid() == self._process:  # not in a forked data worker
            self._before[_REQUEUE](_REQUEUE, None)
        raise Stopped(EXIT_CODE)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if number != _REQUEUE and time.monotonic() - self._since > _ECHO:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.received, self._since = signal.Signals(number).name, time.monotonic()
        if self._raise:
            self.stop()
