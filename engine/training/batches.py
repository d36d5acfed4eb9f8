"""Prefetch the remaining batches of a run to the device."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils._pytree import tree_leaves

from ...data.dataset import ImageDataset
from ...data.loader import Loader
from ...data.training_samples import Seeded, train_loader
from ..evaluation.tasks import Task
from ..runtime.distributed import rank, world_size


def remaining_batches(config: DictConfig, train_set: ImageDataset, task: Task, *, start: int) -> Loader:
    """Return a loader of this process's portion of the batches, from iteration `start` to the last one."""
    return train_loader(
        Seeded(train_set, config.seed, skip_broken=config.skip_broken),
        batch_size=config.recipe.batch_size,
        pieces=config.accumulate,
        iterations=config.recipe.max_iters,
        start=start,
        num_workers=config.num_workers,
        collate=task.collate,
        process=rank(),
        processes=world_size(),
    )


def prefetch(
    batches: Generator[tuple[Any, Any]], place: Callable[[Any, Any], tuple[Any, Any]], device: torch.device
) -> Generator[tuple[Any, Any]]:
    """Yield (images, labels) after `place` has moved them to the device.

    On a GPU, a separate CUDA stream copies each batch while the steps that the host has already queued are running.
    Closing the generator also closes `batches`.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    with closing(batches):
        for batch in batches:
            with torch.cuda.stream(copying):  # no-op if it is None
                placed = place(*batch)
            if copying:
                computing = torch.cuda.current_stream(device)
                computing.wait_stream(copying)
                for tensor in tree_leaves(placed):
                    tensor.record_stream(computing)  # otherwise, the next copy may overwrite its memory too early
            yield placed
