"""Reproducible training samples.

Both the index and the augmentation of the p-th sample depend only on the seed and p. A run resumed at sample p
therefore sees exactly the samples of an uninterrupted run, with any number of workers and without saved RNG states.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .dataset import ImageDataset
from .loader import Loader
from .reading.errors import UnreadableImage


class TrainingSampler(Sampler[tuple[int, int]]):
    """Yields pairs (sample number, index into the data set); the data set is reshuffled every epoch.

    Args:
        length: the number of images in the data set.
        seed: the seed of the shuffling.
        start, stop: the range of sample numbers, excluding ``stop``.
        share: (rank, number of ranks, batch size); only the rank's part of each batch is yielded. Together, the ranks
            see the same batches as a single process.
    """

    def __init__(self, length: int, *, seed: int, start: int, stop: int, share: tuple[int, int, int] = (0, 1, 1)):
        self.length, self.seed, self.start, self.stop = length, seed, start, stop
        self.process, self.processes, self.batch = share

    def __len__(self) -> int:
        return (self.stop - self.start) // self.processes

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order, shuffled_epoch = [], None
        for number in range(self.start, self.stop):
            epoch, offset = divmod(number, self.length)
            if epoch != shuffled_epoch:
                generator = torch.Generator().manual_seed(_mix(self.seed, epoch, stream=0))
                order = torch.randperm(self.length, generator=generator).tolist()
                shuffled_epoch = epoch
            if number % self.batch * self.processes // self.batch == self.process:
                yield number, order[offset]


class Seeded(Dataset[tuple[Tensor, Any]]):
    """A data set whose random transforms are seeded by the sample number.

    Its keys are the pairs (sample number, index into the data set) that :class:`TrainingSampler` yields.

    Args:
        dataset: the data set to draw from.
        seed: the seed of shuffling and augmentation.
        skip_broken: the number of unreadable images to tolerate. Each is replaced by the next readable one, with a
            warning.

    Attributes:
        broken: bool (len(dataset),), True for images found to be unreadable; in shared memory, for all workers.
    """

    def __init__(self, dataset: ImageDataset, seed: int, *, skip_broken: int = 0):
        self.dataset, self.seed, self.skip_broken = dataset, seed, skip_broken
        self.broken = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Any]:  # pyrefly: ignore[bad-override-param-name]
        number, index = key
        with torch.random.fork_rng(devices=[]):  # without workers, this is the training process
            while True:
                torch.manual_seed(_mix(self.seed, number, stream=1))
                try:
                    return self.dataset[index]
                except (OSError, UnreadableImage) as error:
                    self._skip(index, error)
                    index = (index + 1) % len(self.dataset)

    def names(self, iteration: int, batch_size: int) -> list[str]:
        """Return the names of the samples in the batch of ``iteration`` (0-based), ignoring replacements."""
        start = iteration * batch_size
        sampler = TrainingSampler(len(self.dataset), seed=self.seed, start=start, stop=start + batch_size)
        return [self.dataset.name(index) for _, index in sampler]

    def _skip(self, index: int, error: Exception) -> None:
        """Mark an image as broken; raise its error if more than ``skip_broken`` images are."""
        if not self.broken[index]:
            if self.broken.sum() >= min(self.skip_broken, len(self) - 1):
                raise error
            self.broken[index] = True
            warnings.warn(
                f"skipping image {self.dataset.name(index)} "
                f"({self.broken.sum()} of at most {self.skip_broken}): {error}",
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
    collate: Callable[[list[Any]], Any] | None = None,
    process: int = 0,
    processes: int = 1,
) -> Loader:
    """Return a loader for the batches of a run from iteration ``start`` to ``iterations`` - 1.

    Args:
        samples: the training samples, which must all have the same size unless ``collate`` accepts several sizes.
        batch_size: samples per iteration, summed over all processes.
        pieces: the number of pieces into which each process splits its part of a batch, to accumulate gradients.
        iterations: the number of iterations of the whole run.
        start: the number of iterations already completed.
        num_workers: the number of worker processes; 0 loads in this process.
        collate: combines a list of samples into a batch; torch's default stacks them.
        process, processes: the rank of this process and the number of ranks; each loads its part of every batch.

    Raises:
        ValueError: there are no samples, or the batch cannot be split evenly.
    """
    if len(samples) == 0:
        raise ValueError("the training set is empty")
    if batch_size % (processes * pieces):
        raise ValueError(
            f"recipe.batch_size={batch_size} is shared by {processes} processes, each of which splits its part into "
            f"accumulate={pieces} pieces: set it to a multiple of {processes * pieces}"
        )
    sampler = TrainingSampler(
        len(samples),
        seed=samples.seed,
        start=start * batch_size,
        stop=iterations * batch_size,
        share=(process, processes, batch_size),
    )
    return Loader(
        samples,
        batch_size=batch_size // processes,
        sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def _mix(seed: int, number: int, *, stream: int) -> int:
    """Hash three numbers into a 63-bit seed by multiplication and xor-shifts, as in splitmix64."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % 2**64
    for shift in (30, 27, 31):
        mixed = ((mixed ^ (mixed >> shift)) * 0xD6E8FEB86659FD93) % 2**64
    return mixed >> 1
