"""The length and the learning rate of a run whose recipe gives them in epochs or for another batch size."""

import math

from omegaconf import DictConfig, OmegaConf

from ....data.build import build_dataset
from ...guards.settings import replaced
from ...resuming.identity import LENGTH, of_length
from ...runtime.launchers import is_first
from ...runtime.overrides import given_options


def with_length_and_rate(config: DictConfig) -> DictConfig:
    """Return the configuration with ``recipe.epochs`` in iterations and ``recipe.lr`` for the batch size, if asked for.

    The last iteration completes the last epoch. If ``recipe.base_batch_size`` is set, the learning rate is proportional
    to the batch size (Goyal et al., 2017, arXiv:1706.02677): the new rate is printed, and ``recipe.base_batch_size``
    becomes the batch size. A run resumed with ``resume=FOLDER`` keeps its length and its learning rate.

    Raises:
        ValueError: ``recipe.epochs`` is set, and ``recipe.max_iters`` on the command line too.
    """
    if config.resume not in (None, "auto"):
        return config
    return _with_rate(_with_length(config))


def _with_length(config: DictConfig) -> DictConfig:
    epochs = config.recipe.epochs
    if epochs is None:
        return config
    if LENGTH in given_options():
        raise ValueError(f"{LENGTH}={config.recipe.max_iters} and recipe.epochs={epochs}: set only one of them")
    images = len(build_dataset(config.dataset, "train", None))
    return of_length(config, math.ceil(epochs * images / config.recipe.batch_size))


def _with_rate(config: DictConfig) -> DictConfig:
    base, batch = config.recipe.get("base_batch_size"), config.recipe.batch_size
    if base in (None, batch):
        return config
    rate = config.recipe.lr * batch / base
    if is_first():
        print(
            f"learning rate {rate:g}: recipe.lr={config.recipe.lr:g} for batches of {base} (recipe.base_batch_size), "
            f"times {batch}/{base}"
        )
    scaled = replaced(config)
    OmegaConf.update(scaled, "recipe.lr", rate)
    OmegaConf.update(scaled, "recipe.base_batch_size", batch)
    return scaled
