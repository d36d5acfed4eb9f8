"""Class weights of the loss: given, or computed from the training labels."""

import math
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ....data.inspection import DatasetReport, inspect_dataset
from ...guards.settings import plain, replaced
from ...runtime.distributed import from_all, rank, world_size
from ...runtime.progress import tracked


def with_class_weights(config: DictConfig, dataset: Any) -> DictConfig:
    """Return the configuration with ``class_weights`` set according to ``dataset.class_weights``.

    "auto" selects the median-frequency weights that check_data.py shows; a class that does not occur has weight 1. With
    n processes, each reads every n-th label image. A resumed run already has the weights in its configuration.

    Raises:
        ValueError: ``dataset.class_weights`` is not null, "auto" or a list of one non-negative number per class.
    """
    setting = OmegaConf.select(config, "dataset.class_weights")
    if setting is None or config.get("class_weights") is not None:
        return config
    if setting == "auto":
        return replaced(config, class_weights=_median_frequency(dataset, config.num_workers))
    weights = plain(config)["dataset"]["class_weights"]
    if not isinstance(weights, list) or len(weights) != len(dataset.classes) or not all(map(_is_weight, weights)):
        raise ValueError(
            f"dataset.class_weights is {weights!r}: set it to auto, or to a list of {len(dataset.classes)} numbers of "
            "at least 0, one per class"
        )
    return replaced(config, class_weights=weights)


def _median_frequency(dataset: Any, num_workers: int) -> list[float]:
    own = range(rank(), len(dataset), world_size())
    with torch.random.fork_rng(devices=()):  # a loader draws a seed; the initial weights must not depend on "auto"
        track = partial(tracked, title="class weights", step="class weights: read image")
        report = inspect_dataset(dataset, indices=own, labels_only=True, num_workers=num_workers, track=track)
    total = DatasetReport()
    for pixels, pixels_with in from_all((report.pixels, report.pixels_with)):
        total.pixels += pixels
        total.pixels_with += pixels_with
    weights = total.weights(len(dataset.classes)).tolist()
    return [1.0 if math.isnan(weight) else round(weight, 6) for weight in weights]


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
