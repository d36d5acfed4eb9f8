"""The endless, reproducible stream of training samples.

Sample number p of a run, its order and its augmentation, is a function of the seed and p alone. So a run that
resumes at sample p continues exactly, whatever the number of workers, and no random state has to be saved.
"""

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .image_files import UnreadableImage
from .loader import Loader


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
                except (OSError, UnreadableImage) as error:
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
) -> Loader:
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
    )


def _mix(seed: int, number: int, *, stream: int) -> int:
    """One 63-bit seed out of three numbers, well spread (splitmix64's finaliser)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % 2**64
    for shift in (30, 27, 31):
        mixed = ((mixed ^ (mixed >> shift)) * 0xD6E8FEB86659FD93) % 2**64
    return mixed >> 1
