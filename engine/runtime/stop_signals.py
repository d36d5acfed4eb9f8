"""Stop a run at the request of the cluster or the user, without losing work."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .overrides import called_from_python

EXIT_CODE = 75  # EX_TEMPFAIL in sysexits.h, "try again later": the run is saved and can be resumed
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Windows lacks both of these, which are then None.
_HANGUP = getattr(signal, "SIGHUP", None)  # sent when the terminal is closed or its connection is lost
_REQUEUE = getattr(signal, "SIGUSR2", None)  # sent by Slurm, at submitit's request, shortly before a job's time limit
_ECHO = 1.0  # seconds; a cluster signals every process, and torchrun forwards the signal to its workers once more


class Stopped(SystemExit):
    """Raised once a run that was asked to stop has written its checkpoint.

    Attributes:
        received: the name of the signal that requested it.
    """

    def __init__(self, received: str | None):
        super().__init__(EXIT_CODE)
        self.received = received


@contextmanager
def second_signal_ends(
    signals: Collection[int] = _SIGNALS, first: Collection[int | None] = (*_SIGNALS, _REQUEUE)
) -> Generator[None]:
    """Within the block, let a second SIGTERM or SIGINT end this process immediately, whatever it is waiting for.

    Python runs signal handlers in the main thread between two bytecodes, hence never while that thread waits in C++ for
    a peer or a GPU. Its C-level handler, however, writes every signal to a file descriptor immediately, and another
    thread reads it here. Signals within a second of the first are treated as the same request, because wrappers forward
    signals that all processes receive anyway. The block has no effect outside the main thread, or on Windows.

    Args:
        signals: those of the two that end the process.
        first: the signals that may come before it.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch = threading.Thread(target=_end_at_second, args=(reader, signals, first), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, bytes(1))  # closing it is not enough: forked data workers hold copies of it
        watch.join()
        os.close(reader)
        os.close(writer)


def _end_at_second(reader: int, signals: Collection[int], first: Collection[int | None]) -> None:
    """Read signal numbers until a zero; end the process on a second stop signal."""
    since: float | None = None
    while number := int.from_bytes(os.read(reader, 1)):
        if number not in first:
            continue
        if since is None:
            since = time.monotonic()
        elif number in signals and time.monotonic() - since > _ECHO:
            ctypes.CDLL(None).signal(number, None)  # SIG_DFL; signal.signal works in the main thread only
            os.kill(os.getpid(), number)


@contextmanager
def stopped_like_ctrl_c() -> Generator[None]:
    """Within the block, let SIGTERM and SIGHUP raise KeyboardInterrupt as well, so that ``with`` blocks clean up.

    Signals that are ignored, as SIGHUP is under nohup, and those with a handler of the program's own are left alone.
    """
    numbers = [number for number in (signal.SIGTERM, _HANGUP) if number and signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class StopRequest:
    """Records the first SIGTERM or SIGINT within its ``with`` block; see :func:`second_signal_ends` for the second.

    In a program that has called ``ccnet.train.run``, such as a notebook, a second SIGINT raises KeyboardInterrupt
    instead of ending the program.

    SIGHUP is recorded too unless it is ignored, as under nohup, or the program has a handler of its own.

    SIGUSR2 is recorded too if submitit has installed a handler for it. That handler, which requeues the job, is called
    once the run is saved.

    Attributes:
        received: the name of the signal, or None.
    """

    def __init__(self):
        self.received: str | None = None
        self._raise, self._since = False, 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._in_program = called_from_python()

    def __enter__(self) -> "StopRequest":
        numbers = [*_SIGNALS]
        numbers += [_HANGUP] if _HANGUP and signal.getsignal(_HANGUP) is signal.SIG_DFL else []
        numbers += [_REQUEUE] if _REQUEUE and callable(signal.getsignal(_REQUEUE)) else []
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            self._before = {number: signal.signal(number, self._receive) for number in numbers}
        self._watch = second_signal_ends((signal.SIGTERM,) if self._in_program else _SIGNALS, numbers)
        self._watch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.received:
            time.sleep(max(0.0, self._since + _ECHO - time.monotonic()))
        self._watch.__exit__(None, None, None)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Raise :class:`Stopped` as soon as a request arrives, even mid-block; unfinished work may be lost."""
        self._raise = True
        try:
            if self.received:
                self.stop()
            yield
        except Exception as error:
            if self.received:  # the signal has probably ended a process that this one was waiting for
                raise Stopped(self.received) from error
            raise
        finally:
            self._raise = False

    def stop(self) -> None:
        """Raise :class:`Stopped`, after calling submitit's own handler if the signal was SIGUSR2."""
        if _REQUEUE and self.received == _REQUEUE.name and os.getpid() == self._process:  # not in a forked data worker
            self._before[_REQUEUE](_REQUEUE, None)
        raise Stopped(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if self._in_program and number == signal.SIGINT and time.monotonic() - self._since > _ECHO:
                raise KeyboardInterrupt
            return
        self.received, self._since = signal.Signals(number).name, time.monotonic()
        if self._raise:
            self.stop()
