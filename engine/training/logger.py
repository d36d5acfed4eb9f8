"""The log of a run: CSV files and plots in its folder, and W&B."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ...data.dataset import ImageDataset
from ..drawing.charts import save_curves
from ..drawing.scalar_file import ScalarFile
from ..evaluation.tasks import Task, TaskEvaluation, reported_scores
from ..guards.settings import plain
from ..runtime.atomic_files import write_text
from ..runtime.distributed import rank
from ..runtime.run_folder import CONFIG
from .state import TrainingState

if TYPE_CHECKING:  # importing W&B takes a second; runs without it skip that
    from .wandb_logger import WandbRun


class NoLog:
    """A log that records nothing; replaces :class:`RunLog` in all processes but the first."""

    val_images_per_s = None

    def train(self, iteration: int, values: dict[str, float]) -> None:
        """Do nothing."""

    def validation(self, iteration: int, result: TaskEvaluation) -> None:
        """Do nothing."""

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *error: object) -> None:
        pass


class RunLog:
    """The log of one training run; leaving its ``with`` block finishes the W&B run.

    ``train.csv`` and ``val.csv`` contain the scalars, ``val_classes.csv`` the per-class scores of the latest
    validation, and ``curves.png`` and ``predictions.png`` the plots.

    Args:
        config: the complete configuration of the run.
        folder: the run's folder.
        task: the task, which draws the predictions.
        dataset: the data set, which provides the class names and colours.
        state: the training state, which provides the iteration to resume from and stores the id of the W&B run.
        group: the W&B group of the run, unless the configuration sets one.
    """

    def __init__(
        self,
        config: DictConfig,
        folder: Path,
        *,
        task: Task,
        dataset: ImageDataset,
        state: TrainingState,
        group: str | None,
    ):
        self.task, self.folder, self.classes, self.palette = task, folder, dataset.classes, dataset.palette
        self._train = ScalarFile(folder / "train.csv", keep_until=state.iteration)
        self._validation = ScalarFile(folder / "val.csv", keep_until=state.validated)
        self._wandb = _start_wandb(config, folder, run_id=state.wandb_id, group=group)
        state.wandb_id = self._wandb.run_id if self._wandb else None

    @property
    def val_images_per_s(self) -> float | None:
        """The throughput of the latest validation, which may be from an earlier part of the run; None if unknown."""
        return self._validation.rows[-1].get("images_per_s") if self._validation.rows else None

    def train(self, iteration: int, values: dict[str, float]) -> None:
        """Log the scalars of a training iteration."""
        self._train.add({"iteration": iteration} | values)
        if self._wandb:
            self._wandb.scalars(iteration, {f"train/{name}": value for name, value in values.items()})

    def validation(self, iteration: int, result: TaskEvaluation) -> None:
        """Log a validation: scores in percent, the per-class table, curves and predictions."""
        summary = result.scores.summary()
        table = result.scores.table(self.classes)
        reported = reported_scores(result.scores, self.classes)
        self._validation.add({"iteration": iteration} | summary | {"images_per_s": result.images_per_s} | reported)
        table.write_csv(self.folder / "val_classes.csv")
        save_curves(self.folder / "curves.png", self._train.rows, self._validation.rows, list(summary)[:2])
        self.task.save_panel(self.folder / "predictions.png", result.samples, self.classes, self.palette)
        if self._wandb:
            self._wandb.scalars(iteration, {f"val/{name}": value for name, value in summary.items()})
            pixels = [(image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for image, *_ in result.samples]
            drawn = self.task.wandb_panels(result.samples, self.classes)
            self._wandb.validation(iteration, table.header, table.rows, [*zip(pixels, drawn, strict=True)])

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._wandb:
            self._wandb.close(failed=kind is not None)


def _start_wandb(config: DictConfig, folder: Path, *, run_id: str | None, group: str | None) -> "WandbRun | None":
    if config.logger._target_ is None:
        return None
    if run_id and not any(part.name.endswith(f"-{run_id}") for part in (folder / "wandb").glob("*run-*")):
        # The checkpoint may come from someone else, without the files that W&B writes.
        print(f"W&B: {folder} has no files of the run {run_id} in its checkpoint, so a new W&B run starts here")
        run_id = None
    start = instantiate(config.logger)
    name = "/".join(folder.resolve().parts[-2:])
    return start(folder, name=name, group=config.logger.get("group") or group, config=plain(config), run_id=run_id)


def open_log(config: DictConfig, folder: Path, **options: Any) -> RunLog | NoLog:
    """Write ``config.yaml`` and open the run's log; in all processes but the first, return a :class:`NoLog`.

    Args:
        config: the complete configuration of the run.
        folder: the run's folder, created if needed.
        **options: further arguments of :class:`RunLog`.
    """
    if rank():
        return NoLog()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, OmegaConf.to_yaml(config, resolve=True))
    return RunLog(config, folder, **options)
