"""The endless, reproducible stream of training samples.

Sample number p of a run, its order and its augmentation, is a function of the seed and p alone. So a run that
resumes at sample p continues exactly, whatever the number of workers, and no random state has to be saved.
"""

import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.pictures import UnreadablePicture

T = TypeVar("T")
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # of jobs


class Positions(Sampler[tuple[int, int]]):
    """(sample number, index into the data set) from ``start`` to ``stop``; each epoch is shuffled anew.

    With ``share`` = (r, n, batch), r's part of each batch among n processes: all together have the batches of one.
    """

    def __init__(self, length: int, *, seed: int, start: int, stop: int, share: tuple[int, int, int] = (0, 1, 1)):
        self.length, self.seed, self.start, self.stop = length, seed, start, stop
        self.process, self.processes, self.batch = share

    def __len__(self) -> int:
        return (self.stop - self.start) // self.processes

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order, shuffled_epoch = [], None
        for position in range(self.start, self.stop):
            epoch, offset = divmod(position, self.length)
            if epoch != shuffled_epoch:
                generator = torch.Generator().manual_seed(_mix(self.seed, epoch, stream=0))
                order = torch.randperm(self.length, generator=generator).tolist()
                shuffled_epoch = epoch
            if position % self.batch * self.processes // self.batch == self.process:
                yield position, order[offset]


class Seeded(Dataset):
    """A data set whose random transforms are seeded by the sample number.

    Args:
        dataset: of (image, label) pairs.
        seed: of order and augmentation.
        skip_broken: samples that may turn out to be unreadable; the next one that can be read stands in for each.
    """

    def __init__(self, dataset: Dataset, seed: int, *, skip_broken: int = 0):
        self.dataset, self.seed, self.skip_broken = dataset, seed, skip_broken
        self.broken = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()  # in all the processes that load

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        position, index = key
        with torch.random.fork_rng(devices=[]):  # without workers, this is the process that also trains
            while True:
                torch.manual_seed(_mix(self.seed, position, stream=1))
                try:
                    return self.dataset[index]
                except (OSError, UnreadablePicture) as error:
                    self._skip(index, error)
                    index = (index + 1) % len(self.dataset)

    def names(self, iteration: int, batch_size: int) -> list[str]:
        """Names of the samples of batch number ``iteration``, counted from 0."""
        start = iteration * batch_size
        positions = Positions(len(self.dataset), seed=self.seed, start=start, stop=start + batch_size)
        return [self.dataset.name(index) for _, index in positions]

    def _skip(self, index: int, error: Exception) -> None:
        if not self.broken[index]:
            if self.broken.sum() >= min(self.skip_broken, len(self) - 1):
                raise error
            self.broken[index] = True
            warnings.warn(
                f"{self.dataset.name(index)} is left out, number {self.broken.sum()} of at most {self.skip_broken}: "
                f"{error}",
                stacklevel=2,
            )


def train_loader(
    samples: Seeded,
    *,
    batch_size: int,
    pieces: int = 1,
    iterations: int,
    start: int = 0,
    num_workers: int,
    collate: Callable | None = None,
    process: int = 0,
    processes: int = 1,
) -> DataLoader:
    """Batches number ``start`` to ``iterations`` - 1 of a run.

    Args:
        samples: (image, label) pairs, of one size unless ``collate`` takes others.
        batch_size: samples per iteration, of all processes together.
        pieces: in which each process takes its part of a batch.
        iterations: of the whole run.
        start: iterations already done.
        num_workers: processes that load; 0 loads in this one.
        collate: samples to batch; torch's own stacks them.
        process, processes: which of how many this is; each loads its part of every batch.
    """
    if len(samples) == 0:
        raise ValueError("the training set is empty")
    if batch_size % (processes * pieces):
        raise ValueError(
            f"recipe.batch_size={batch_size} is shared by {processes} processes, each of which takes its part in "
            f"accumulate={pieces} pieces: give a multiple of {processes * pieces}"
        )
    positions = Positions(
        len(samples),
        seed=samples.seed,
        start=start * batch_size,
        stop=iterations * batch_size,
        share=(process, processes, batch_size),
    )
    return Loader(
        samples,
        batch_size=batch_size // processes,
        sampler=positions,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=start_method(num_workers),
        generator=torch.Generator(),  # else every new loader draws from the generator that dropout uses
    )


class Loader(DataLoader):
    """A DataLoader whose processes leave to this one the signals by which a cluster or a person ends a job.

    Those reach every process, but this one still needs its batch. They are blocked from the first moment on, for which
    ``worker_init_fn`` comes too late.
    """

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, worker_init_fn=_heed_parent, **named)

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


def lost_worker(error: BaseException) -> bool:
    """Whether ``error`` says that a process that loads is gone.

    torch says so wherever this process happens to be; or reading what that process has left fails.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    places = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ConnectionError | EOFError) and any("torch/utils/data" in at.filename for at in places)


def start_method(num_workers: int) -> str | None:
    """How a loader's processes start: None for the system's way; a fork of a process in which JAX runs may hang."""
    return "spawn" if num_workers and "jax" in sys.modules else None


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


def _mix(seed: int, number: int, *, stream: int) -> int:
    """One 63-bit seed out of three numbers, well spread (splitmix64's finaliser)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % 2**64
    for shift in (30, 27, 31):
        mixed = ((mixed ^ (mixed >> shift)) * 0xD6E8FEB86659FD93) % 2**64
    return mixed >> 1
