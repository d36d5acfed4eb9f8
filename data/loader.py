"""The processes that load data: how they start, what ends them, and what it looks like when one is lost."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # of jobs


class Loader(DataLoader):
    """A DataLoader whose processes leave to this one the signals by which a cluster or a person ends a job.

    Those reach every process, but this one still needs its batch. They are blocked from the first moment on, for which
    ``worker_init_fn`` comes too late.
    """

    def __init__(self, dataset: Dataset, *, num_workers: int = 0, **named: Any):
        super().__init__(
            dataset,
            num_workers=num_workers,
            worker_init_fn=_heed_parent,
            multiprocessing_context=_start_method(num_workers),
            generator=torch.Generator(),  # else every new loader draws from the generator that dropout uses
            **named,
        )

    def __iter__(self) -> Iterator:
        with _signals_held_back():
            return super().__iter__()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """For this process until the end of the block; for those that it starts meanwhile, for ever."""
    arrived: list[int] = []
    main = threading.current_thread() is threading.main_thread()  # which may be interrupted for a signal to another
    handlers = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in _ENDING * main}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)


def _heed_parent(worker: int) -> None:
    """End this process on its parent's SIGTERM, which at the parent's exit waits for it."""

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _start_method(num_workers: int) -> str | None:
    """How a loader's processes start: the system's own way, which a parallel sweep's runs have to ask for.

    There joblib's is the default, by which only joblib can start one. A fork of a process in which JAX runs may hang.
    """
    if not num_workers:
        return None
    return "spawn" if "jax" in sys.modules else multiprocessing.get_all_start_methods()[0]


def timed(batches: Iterable[T]) -> Iterator[tuple[T, float]]:
    """Each batch, and the seconds that were spent waiting for it; closing it ends the processes that load."""
    iterator = iter(batches)
    try:
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            yield batch, time.perf_counter() - start
    finally:
        if end_workers := getattr(iterator, "_shutdown_workers", None):
            end_workers()  # an error's traceback keeps the iterator, and its workers pass over the signal at the exit
