"""Distribute the samples of a data set over the processes of an evaluation."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Subset

from ...data.loader import Loader
from ..runtime.distributed import rank, world_size
from ..runtime.progress import tracked


def own_samples(
    dataset: Any, *, num_workers: int, keep_samples: int, **options: Any
) -> Iterator[tuple[int, tuple[Any, Any], bool]]:
    """Yield (index, batch of one sample, whether to keep it) for this process: every n-th sample of n processes.

    Args:
        dataset: the data set.
        num_workers: the number of processes that load samples.
        keep_samples: the number of samples to keep for drawing; they are evenly spaced over the data set, because
            neighbouring video frames look alike.
        **options: further arguments of the :class:`Loader`.
    """
    own = range(rank(), len(dataset), world_size())
    kept = own[:: max(len(own) // max(keep_samples, 1), 1)][:keep_samples]
    loader = Loader(Subset(dataset, own), batch_size=1, num_workers=num_workers, **options)
    samples = tracked(loader, "validate", "validated image", leave=False)
    for index, sample in zip(own, samples, strict=True):
        yield index, sample, index in kept
