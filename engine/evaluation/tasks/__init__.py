"""What differs between the kinds of segmentation, behind one interface that ``train.py`` works with.

A data set brings its task (``conf/task``).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...drawing.tables import text_table


class TaskScores(Protocol):
    """Scores of a validation: a NamedTuple of plain numbers, as it stands in checkpoints."""

    headline: float  # the share in [0, 1] by which the best checkpoint is chosen

    def summary(self) -> dict[str, float]:
        """Percent by name, the headline first."""

    def table(self, classes: list[str]) -> tuple[tuple[str, ...], list[tuple]]:
        """Header and rows in percent: each class, then the means."""


class TaskEvaluation(Protocol):
    """What a validation gives."""

    scores: TaskScores
    images_per_s: float
    samples: list[tuple[Any, Any, Any]]  # (image, labels, prediction), a few for a picture


class Task(Protocol):
    """A batch is (images, labels); what they are and how they are scored is the task's."""

    scores: type  # of a validation, a TaskScores
    collate: Callable | None  # of the data loader; None for torch's own

    def check(self, config: DictConfig, model: nn.Module) -> None:
        """Raise ValueError if ``model`` and ``config`` do not fit this task."""

    def eval_transform(self) -> Callable:
        """Of validation samples."""

    def to_device(self, images: Any, labels: Any, device: torch.device, memory_format: Any) -> tuple[Any, Any]:
        """A batch where the network is."""

    def forward(self, model: nn.Module, images: Any, labels: Any) -> dict[str, Tensor]:
        """What the criterion reads, in training."""

    def cost(self, model: nn.Module, config: DictConfig) -> dict[str, float]:
        """What ``model`` costs for one training crop, by name, for the table of a sweep."""

    def evaluate(self, model: nn.Module, dataset: Dataset, protocol: Any, **options: Any) -> TaskEvaluation:
        """Score ``model`` on ``dataset``; options as in :func:`engine.evaluation.evaluate`."""

    def save_panel(self, path: Path, samples: list, classes: list[str], palette: list) -> None:
        """Write a picture of the samples: image, truth, prediction."""

    def wandb_panels(self, samples: list, classes: list[str]) -> list[tuple[np.ndarray, dict]]:
        """RGB uint8 images and the arguments of ``wandb.Image`` that draw truth and prediction over them."""


def score_table(scores: TaskScores, classes: Sequence[str]) -> str:
    """The table of a validation by class, and its summary, in percent."""
    summary = "  ".join(f"{name} {value:.2f}" for name, value in scores.summary().items())
    return f"{text_table(*scores.table(classes))}\n{summary}"
