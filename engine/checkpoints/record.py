"""A checkpoint in memory: tensors and a plain configuration, never pickled objects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...models import tensor_files
from ..guards.checks import checked_config

_TRAINING = {"optimizer", "schedule", "random", "best_score", "validated", "skipped", "identity", "wandb_id"}


@dataclass
class Checkpoint:
    """The contents of a checkpoint.

    Attributes:
        weights: the network's state dict, on the CPU.
        config: the run's resolved configuration.
        classes: the names of the K classes.
        palette: the RGB colours of the K classes.
        iteration: the number of completed iterations; None if a published file does not record it.
        scores: the scores of the latest validation.
        training: the state of the optimiser, scheduler and random number generators, the best score, and the run's
            identity; empty unless the file is a run's ``last.pt`` or ``previous.pt``.
        source: the file that the checkpoint was read from.
    """

    weights: dict[str, Tensor]
    config: dict[str, Any]
    classes: list[str]
    palette: list[list[int]]
    iteration: int | None
    scores: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None

    def setting(self, name: str) -> Any:
        """Return a value of the configuration by its dotted name; raise ValueError if it is missing."""
        value: Any = self.config
        for key in name.split("."):
            if not (isinstance(value, dict) and key in value):
                raise ValueError(f"the checkpoint's config has no {name}, unlike those of train.py and published files")
            value = value[key]
        return value

    @property
    def dataset(self) -> dict[str, Any]:
        """The configuration of the data set; {} for a checkpoint that was imported from a published file."""
        return self.config.get("dataset", {})

    @property
    def channels(self) -> int:
        """The number of input channels of the network."""
        return self.setting("model.backbone").get("in_channels", 3)

    @property
    def value_range(self) -> Sequence[float] | None:
        """The values of black and white in images of more than 8 bits, as in training; None for the full range."""
        return self.dataset.get("value_range")

    @property
    def is_published(self) -> bool:
        """Whether it was imported from a published file, which names no data set as those of runs do."""
        return "dataset" not in self.config

    @property
    def drawn_channels(self) -> Sequence[int] | None:
        """The indices of the channels that are drawn as red, green and blue; None for the default."""
        return self.dataset.get("rgb")


def checked(checkpoint: Checkpoint) -> Checkpoint:
    """Check every field of an untrusted checkpoint and return it, with former names in its configuration updated.

    Raises:
        ValueError: a field does not have the type that :class:`Checkpoint` declares, or :func:`checked_config` rejects
            the configuration.
    """
    iteration, training = checkpoint.iteration, checkpoint.training
    valid = {
        "weights": isinstance(checkpoint.weights, dict)
        and all(isinstance(key, str) and tensor_files.is_plain(value) for key, value in checkpoint.weights.items()),
        "config": isinstance(checkpoint.config, dict),
        "classes": _is_list(checkpoint.classes, lambda name: isinstance(name, str)),
        "palette": _is_list(checkpoint.palette, _is_colour),
        "iteration": iteration is None or (type(iteration) is int and 0 <= iteration < 2**63),
        "scores": isinstance(checkpoint.scores, dict),
        "training": isinstance(training, dict)
        and (not training or training.keys() >= _TRAINING)
        and all(_is_texts(training.get(key)) for key in ("contents", "choices"))
        and isinstance(training.get("overrides"), dict | None)
        and _is_plain(training.get("overrides")),
    }
    if wrong := [name for name, good in valid.items() if not good]:
        raise ValueError(f"invalid {' and '.join(wrong)}")
    if len(checkpoint.classes) != len(checkpoint.palette):
        raise ValueError(f"it names {len(checkpoint.classes)} classes but has {len(checkpoint.palette)} colours")
    checkpoint.config = checked_config(checkpoint.config)
    return checkpoint


def _is_list(value: Any, good: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(good(part) for part in value)


def _is_texts(value: Any) -> bool:
    """Return True for {string: string}, and for None, since earlier versions did not record these fields."""
    return value is None or (
        isinstance(value, dict) and all(isinstance(part, str) for part in (*value, *value.values()))
    )


def _is_plain(value: Any) -> bool:
    """Return True if a value consists of what a JSON file can hold."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    return _is_list(value, _is_plain) or isinstance(value, str | int | float | None)


def _is_colour(value: Any) -> bool:
    return _is_list(value, lambda part: type(part) is int and 0 <= part <= 255) and len(value) == 3
