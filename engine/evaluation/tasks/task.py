"""The interface through which training and evaluation treat every kind of segmentation alike.

A data set chooses its task (``conf/task``).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ...drawing.tables import Table


class TaskScores(Protocol):
    """The scores of a validation: a NamedTuple of plain numbers, which checkpoints hold."""

    @property
    def headline(self) -> float:
        """The share in [0, 1] that decides which checkpoint is the best."""
        ...

    def _asdict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        ...

    def summary(self) -> dict[str, float]:
        """Return percentages by name, the headline first."""
        ...

    def table(self, classes: Sequence[str]) -> Table:
        """Return percentages: one row per class, then the means."""
        ...


class TaskEvaluation(Protocol):
    """The result of a validation.

    Attributes:
        scores: the scores over the whole data set.
        images_per_s: how many images all processes together evaluated in a second.
        samples: a few (image, labels, prediction) for a picture.
    """

    @property
    def scores(self) -> TaskScores: ...

    @property
    def images_per_s(self) -> float: ...

    @property
    def samples(self) -> list[tuple[Any, Any, Any]]: ...


class Task(Protocol):
    """A kind of segmentation: what a batch (images, labels) holds and how predictions are scored and drawn.

    Attributes:
        scores: the class of a validation's scores.
        collate: joins samples into a batch; None for torch's default.
        predicts_label_maps: whether a prediction is a label map, which the protocols transform and which prediction
            files hold.
    """

    @property
    def scores(self) -> type: ...

    @property
    def collate(self) -> Callable[..., Any] | None: ...

    @property
    def predicts_label_maps(self) -> bool: ...

    def check(self, config: DictConfig, model: nn.Module) -> None:
        """Raise ValueError unless the network and the run's configuration fit this task."""

    def check_classes(self, known: Sequence[str], dataset: Any) -> None:
        """Raise ValueError unless a network that knows these classes can be evaluated on the data set."""

    def eval_transform(self) -> Callable:
        """Return the transform of validation samples."""
        ...

    def to_device(self, images: Any, labels: Any, device: torch.device, memory_format: Any) -> tuple[Any, Any]:
        """Return the batch on the device."""
        ...

    def forward(self, model: nn.Module, images: Any, labels: Any) -> dict[str, Tensor]:
        """Return the training outputs that the criterion reads."""
        ...

    def cost(self, model: nn.Module, config: DictConfig) -> dict[str, float]:
        """Return the cost of the network for one training crop, by name, for the table of a sweep."""
        ...

    def evaluate(
        self,
        model: Any,
        dataset: Any,
        protocol: Any,
        *,
        device: torch.device,
        bf16: bool = False,
        num_workers: int = 0,
        keep_samples: int = 0,
        on_prediction: Callable[[int, Any], None] | None = None,
    ) -> TaskEvaluation:
        """Score the network on the data set; see :func:`engine.evaluation.segmentation.evaluate`."""
        ...

    def save_panel(self, path: Path, samples: list, classes: Sequence[str], palette: Sequence) -> None:
        """Write a picture of the samples: image, truth and prediction side by side."""

    def write_report(self, stem: Path, result: Any, dataset: Any, about: Mapping[str, Any]) -> None:
        """Print the scores and write them, with pictures, to files that start with `stem`.

        Args:
            stem: the path that all files start with.
            result: what :meth:`evaluate` returned.
            dataset: the data set that it was evaluated on.
            about: "checkpoint", "iteration", "protocol" and "images", which head the report.
        """

    def wandb_panels(self, samples: list, classes: Sequence[str]) -> list[tuple[np.ndarray, dict]]:
        """Return RGB uint8 images, each with the arguments of ``wandb.Image`` that draw truth and prediction."""
        ...


def score_table(scores: TaskScores, classes: Sequence[str]) -> str:
    """Return the scores as text, in percent: a table by class, and the summary."""
    summary = "  ".join(f"{name} {value:.2f}" for name, value in scores.summary().items())
    return f"{scores.table(classes).text()}\n{summary}"
