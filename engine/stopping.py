"""Ending a run when a cluster or a person asks for it, with nothing lost."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75  # "try again later" of sysexits.h: the run is saved and can be resumed
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ECHO = 1.0  # seconds: a cluster signals every process, and torchrun then passes on to its own what it has received


class Stopped(SystemExit):
    """The run was asked to stop, and its checkpoint is written."""


class StopRequest:
    """Remembers the first SIGTERM or SIGINT; a second one ends the process at once. Use it in a ``with``.

    Whatever arrives within a second of the first is the same request: wrappers pass on what all processes receive.

    Attributes:
        received: name of the signal, or None.
    """

    def __init__(self):
        self.received: str | None = None
        self._raise, self._since = False, 0.0
        self._before = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # others cannot, and receive none
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        if self.received:
            time.sleep(max(0.0, self._since + _ECHO - time.monotonic()))
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For work that can be dropped: a request raises :class:`Stopped` in the middle of it."""
        self._raise = True
        try:
            if self.received:
                self.stop()
            yield
        except Exception as error:
            if self.received:  # the signal also ended a process that this one waits for
                raise Stopped(EXIT_CODE) from error
            raise
        finally:
            self._raise = False

    def stop(self) -> None:
        """End the run."""
        raise Stopped(EXIT_CODE)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if time.monotonic() - self._since > _ECHO:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.received, self._since = signal.Signals(number).name, time.monotonic()
        if self._raise:
            self.stop()
