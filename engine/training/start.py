"""The network and the batches that a run starts with."""

from omegaconf import DictConfig
from torch import nn

from ...data.dataset import ImageDataset
from ...data.loader import Loader
from ...data.training_samples import Seeded, train_loader
from ...models.factory import build
from ..checkpoints import networks, reading
from ..checkpoints.record import Checkpoint
from ..evaluation.tasks import Task
from ..guards.settings import replaced
from ..runtime.distributed import rank, world_size
from ..runtime.overrides import given_overrides


def initial_network(config: DictConfig, saved: Checkpoint | None, *, num_classes: int) -> tuple[nn.Module, DictConfig]:
    """Return the network to train, and the configuration with what is known only now.

    That is the number of classes and, with ``init``, the ``model`` node of the checkpoint that it names.

    Args:
        config: the run's configuration.
        saved: the checkpoint to resume from, if any.
        num_classes: K of the data set.

    Raises:
        ValueError: ``init`` is given together with options of another network.
    """
    if saved:
        return networks.network(saved).train(), replaced(config, num_classes=num_classes)
    if config.init is None:
        return build(config.model, num_classes=num_classes), replaced(config, num_classes=num_classes)
    given = [f"{option}={value}" for option, value in given_overrides().items() if _chooses_network(option)]
    if given:
        raise ValueError(f"init={config.init} brings its own network: leave out {' '.join(given)}")
    network, node = networks.start_from(reading.find(config.init), config, num_classes=num_classes)
    return network, replaced(config, num_classes=num_classes, model=node)


def _chooses_network(option: str) -> bool:
    return option.partition(".")[0] in ("model", "backbone")


def remaining_batches(config: DictConfig, train_set: ImageDataset, task: Task, *, start: int) -> Loader:
    """Return this process's part of the batches from iteration `start` to the last one."""
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
