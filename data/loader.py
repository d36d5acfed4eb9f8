"""A DataLoader that shields its workers from signals, stops them reliably, and measures the time spent waiting."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

# Signals with which a cluster, a user or a closed terminal ends a job; Windows has only the first two.
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR2") if hasattr(signal, name)]


def stack_pairs(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Collate pairs of image (C, ..., H, W) and labels; if all images are stored channels-last, so is the batch."""
    images, labels = zip(*samples, strict=True)
    if not all(image.movedim(0, -1).is_contiguous() for image in images):
        return default_collate([*images]), default_collate([*labels])
    return default_collate([image.movedim(0, -1) for image in images]).movedim(-1, 1), default_collate([*labels])


class Loader(DataLoader):
    """A DataLoader whose workers ignore the signals that end a job.

    Such signals are sent to every process of a job, but the training process may still need its next batch. They are
    blocked before the workers start, because ``worker_init_fn`` would run too late; Windows cannot block signals.
    Closing the iterator stops the workers.

    Attributes:
        waited: seconds spent waiting for batches since the attribute was last reset to 0.
    """

    waited = 0.0

    def __init__(self, dataset: Dataset, *, num_workers: int = 0, **named: Any):
        super().__init__(
            dataset,
            num_workers=num_workers,
            worker_init_fn=_heed_parent,
            multiprocessing_context=_start_method(num_workers),
            generator=torch.Generator(),  # else, each loader would advance the global generator of dropout
            **named,
        )

    def __iter__(self) -> Generator:  # pyrefly: ignore[bad-override], nobody relies on torch's class
        context = self.multiprocessing_context  # None without workers
        if context is not None and context.get_start_method() != "fork" and sys.platform != "win32":
            resource_tracker.ensure_running()  # started together with the first worker, it would unblock the signals
        with _signals_blocked():
            batches = super().__iter__()
        return self._timed(batches)

    def _timed(self, batches: Iterator) -> Generator:
        try:
            while True:
                start = time.perf_counter()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                self.waited += time.perf_counter() - start
                yield batch
        finally:
            # A traceback may keep the iterator alive, and with it the workers, which would miss the signal at exit.
            if end_workers := getattr(batches, "_shutdown_workers", None):
                end_workers()


@contextmanager
def _signals_blocked() -> Generator[None]:
    """Defer the signals that end a job until the block ends; processes started in it keep them blocked."""
    arrived: list[int] = []
    main = threading.current_thread() is threading.main_thread()  # only it may set handlers
    handlers = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in _ENDING * main}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING) if sys.platform != "win32" else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)


def _heed_parent(worker: int) -> None:
    """End this worker when its parent sends SIGTERM, as a parent process does on exit before joining its children.

    macOS does not tell who sent a signal: there, the worker ends at any SIGTERM. On Windows, a parent ends its children
    without a signal, and the worker ignores Ctrl-C.
    """
    if sys.platform == "win32":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return

    def wait() -> None:
        if sys.platform == "darwin":
            signal.sigwait({signal.SIGTERM})
        else:
            while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
                pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _start_method(num_workers: int) -> str | None:
    """Return the start method of the workers: the system's default, or "spawn" if JAX is loaded; None without workers.

    The default is passed explicitly because, in a parallel sweep, joblib replaces it with a method that only joblib
    can use. Forking a process in which JAX is running may deadlock.
    """
    if not num_workers:
        return None
    return "spawn" if "jax" in sys.modules else multiprocessing.get_all_start_methods()[0]
