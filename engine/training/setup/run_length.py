"""The length of a run, given in iterations or in epochs."""

import math

from omegaconf import DictConfig

from ....data.build import build_dataset
from ...resuming.identity import LENGTH, of_length
from ...runtime.overrides import given_options


def with_length(config: DictConfig) -> DictConfig:
    """Return the configuration with ``recipe.max_iters`` set to the iterations of ``recipe.epochs``, if that is set.

    The last iteration completes the last epoch. A run resumed with ``resume=FOLDER`` keeps its length.

    Raises:
        ValueError: ``recipe.epochs`` is set, and ``recipe.max_iters`` on the command line too.
    """
    epochs = config.recipe.epochs
    if epochs is None or config.resume not in (None, "auto"):
        return config
    if LENGTH in given_options():
        raise ValueError(f"{LENGTH}={config.recipe.max_iters} and recipe.epochs={epochs}: set only one of them")
    images = len(build_dataset(config.dataset, "train", None))
    return of_length(config, math.ceil(epochs * images / config.recipe.batch_size))
