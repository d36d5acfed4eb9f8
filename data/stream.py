"""The endless, reproducible stream of training samples.

Sample number p of a run, its order and its augmentation, is a function of the seed and p alone. So a run that
resumes at sample p continues exactly, whatever the number of workers, and no random state has to be saved.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

T = TypeVar("T")


class Positions(Sampler[tuple[int, int]]):
    """(sample number, index into the data set) from ``start`` to ``stop``; each epoch is shuffled anew."""

    def __init__(self, length: int, *, seed: int, start: int, stop: int):
        self.length, self.seed, self.start, self.stop = length, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order, shuffled_epoch = [], None
        for position in range(self.start, self.stop):
            epoch, offset = divmod(position, self.length)
            if epoch != shuffled_epoch:
                generator = torch.Generator().manual_seed(_mix(self.seed, epoch, stream=0))
                order = torch.randperm(self.length, generator=generator).tolist()
                shuffled_epoch = epoch
            yield position, order[offset]


class Seeded(Dataset):
    """A data set whose random transforms are seeded by the sample number."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        position, index = key
        with torch.random.fork_rng(devices=[]):  # without workers, this is the process that also trains
            torch.manual_seed(_mix(self.seed, position, stream=1))
            return self.dataset[index]


def train_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    iterations: int,
    start: int = 0,
    seed: int,
    num_workers: int,
    collate: Callable | None = None,
) -> DataLoader:
    """Batches number ``start`` to ``iterations`` - 1 of a run.

    Args:
        dataset: of (image, label) pairs, of one size unless ``collate`` takes others.
        batch_size: samples per iteration.
        iterations: of the whole run.
        start: iterations already done.
        seed: of order and augmentation.
        num_workers: processes that load; 0 loads in this one.
        collate: samples to batch; torch's own stacks them.
    """
    if len(dataset) == 0:
        raise ValueError("the training set is empty")
    positions = Positions(len(dataset), seed=seed, start=start * batch_size, stop=iterations * batch_size)
    return DataLoader(
        Seeded(dataset, seed),
        batch_size=batch_size,
        sampler=positions,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        multiprocessing_context=start_method(num_workers),
        generator=torch.Generator(),  # else every new loader draws from the generator that dropout uses
    )


def start_method(num_workers: int) -> str | None:
    """How a loader's processes start: None for the system's way; a fork of a process in which JAX runs may hang."""
    return "spawn" if num_workers and "jax" in sys.modules else None


def timed(batches: Iterable[T]) -> Iterator[tuple[T, float]]:
    """Each batch, and the seconds that were spent waiting for it."""
    iterator = iter(batches)
    while True:
        start = time.perf_counter()
        try:
            batch = next(iterator)
        except StopIteration:
            return
        yield batch, time.perf_counter() - start


def _mix(seed: int, number: int, *, stream: int) -> int:
    """One 63-bit seed out of three numbers, well spread (splitmix64's finaliser)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % 2**64
    for shift in (30, 27, 31):
        mixed = ((mixed ^ (mixed >> shift)) * 0xD6E8FEB86659FD93) % 2**64
    return mixed >> 1
