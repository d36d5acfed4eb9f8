"""The common interface of the tasks, which training and evaluation use.

A data set selects its task (``conf/task``).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ...drawing.tables import Table


class TaskScores(Protocol):
    """The scores of a validation: a NamedTuple of plain numbers, which is stored in checkpoints."""

    @property
    def headline(self) -> float:
        """The metric in [0, 1] that selects the best checkpoint."""
        ...

    @property
    def class_scores(self) -> list[float]:
        """The per-class scores, whose mean is the headline metric; NaN for classes excluded from the mean."""
        ...

    def _asdict(self) -> dict[str, Any]:
        """Return {name: score}."""
        ...

    def summary(self) -> dict[str, float]:
        """Return {name: percentage}, with the headline metric first."""
        ...

    def table(self, classes: Sequence[str]) -> Table:
        """Return a table of percentages: one row per class, then the means."""
        ...


class TaskEvaluation(Protocol):
    """The result of a validation.

    Attributes:
        scores: the scores over the whole data set.
        images_per_s: the images evaluated per second, over all processes.
        samples: a few (image, labels, prediction) to draw.
    """

    @property
    def scores(self) -> TaskScores: ...

    @property
    def images_per_s(self) -> float: ...

    @property
    def samples(self) -> list[tuple[Any, Any, Any]]: ...


class Task(Protocol):
    """A task: what a batch (images, labels) contains and how predictions are scored and drawn.

    Attributes:
        scores: the class of a validation's scores; its ``empty(K)`` returns scores of NaN for K classes.
        collate: collates samples into a batch; None for torch's default.
        predicts_label_maps: whether predictions are label maps, as test protocols and prediction files require.
    """

    @property
    def scores(self) -> Any: ...

    @property
    def collate(self) -> Callable[..., Any] | None: ...

    @property
    def predicts_label_maps(self) -> bool: ...

    def check(self, config: DictConfig, model: nn.Module) -> None:
        """Raise ValueError unless the network and the run's configuration are valid for this task."""

    def check_classes(self, known: Sequence[str], dataset: Any) -> None:
        """Raise ValueError unless a network with these classes can be evaluated on the data set."""

    def eval_transform(self) -> Callable:
        """Return the transform of validation samples."""
        ...

    def to_device(self, images: Any, labels: Any, device: torch.device, memory_format: Any) -> tuple[Any, Any]:
        """Move the batch to the device."""
        ...

    def forward(self, model: nn.Module, images: Any, labels: Any) -> dict[str, Tensor]:
        """Return the training outputs that the criterion expects."""
        ...

    def cost(self, model: nn.Module, config: DictConfig) -> dict[str, float]:
        """Return the costs of the network for one training crop, by name, for the table of a sweep."""
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
        """Score the network on the data set; see :func:`ccnet.engine.evaluation.segmentation.evaluate`."""
        ...

    def save_panel(self, path: Path, samples: list, classes: Sequence[str], palette: Sequence) -> None:
        """Save a panel with one row of image, ground truth and prediction per sample."""

    def report(self, result: Any, dataset: Any, about: Mapping[str, Any]) -> str:
        """Return the scores as text.

        Args:
            result: what :meth:`evaluate` returned.
            dataset: the data set that it was evaluated on.
            about: "checkpoint", "iteration", "protocol" and "images", for the header of the report.
        """
        ...

    def write_report(self, stem: Path, result: Any, dataset: Any, about: Mapping[str, Any]) -> str:
        """Write the scores and figures to files whose paths start with `stem`; return lines that name the files.

        Args:
            stem: the common prefix of the file paths.
            result, dataset, about: see :meth:`report`.
        """
        ...

    def wandb_panels(self, samples: list, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Return, for each sample, the arguments of ``wandb.Image`` that draw ground truth and prediction."""
        ...


def reported_scores(scores: TaskScores, classes: Sequence[str]) -> dict[str, float]:
    """Return the scores in percent, keyed by their names in ``val.csv``, such as "mIoU" and "IoU/car"."""
    table = scores.table(classes)
    return scores.summary() | {f"{table.header[1]}/{name}": share for name, share, *_ in table.rows[:-1]}


def monitored_score(scores: TaskScores, classes: Sequence[str], name: str | None) -> float:
    """Return the score that selects the best checkpoint, in [0, 1]: the one called `name`, or the headline metric."""
    return scores.headline if name is None else reported_scores(scores, classes)[name] / 100


def check_monitor(task: Task, classes: Sequence[str], name: str | None) -> None:
    """Raise ValueError unless a validation of this task reports a score `name`; None means the headline metric."""
    names = reported_scores(task.scores.empty(len(classes)), classes)
    if name is not None and name not in names:
        raise ValueError(f"recipe.monitor={name} is not a score that is reported: choose one of {', '.join(names)}")


def score_table(scores: TaskScores, classes: Sequence[str]) -> str:
    """Return the scores as text, in percent: a per-class table and the summary."""
    _, *others = scores.summary().items()
    summary = "  ".join([headline_text(scores), *(f"{name} {value:.2f}" for name, value in others)])
    return f"{scores.table(classes).text()}\n{summary}"


def headline_text(scores: TaskScores) -> str:
    """Return the headline metric in percent, with the number of classes if some are excluded from the mean.

    For example, "mIoU 62.10" or "mIoU 62.10 over 10 of 11 classes".
    """
    name, value = next(iter(scores.summary().items()))
    counted = sum(not math.isnan(score) for score in scores.class_scores)
    total = len(scores.class_scores)
    return f"{name} {value:.2f}" + (f" over {counted} of {total} classes" if counted < total else "")
