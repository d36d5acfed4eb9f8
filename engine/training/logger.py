"""Where the numbers of a run go: CSV files and a picture in its folder, and W&B."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..drawing import charts
from ..drawing.scalar_file import ScalarFile

if TYPE_CHECKING:  # W&B takes a second to import, which a run without it saves
    from ..evaluation.tasks import Task, TaskEvaluation
    from .wandb_logger import WandbRun


class NoLog:
    """In the place of a :class:`RunLog` in processes that write nothing."""

    wandb_id = None

    def train(self, iteration: int, values: dict[str, float]) -> None:
        """Leave it to the first process."""

    validation = train

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *error: object) -> None:
        pass


class RunLog:
    """The log of one training run; use it in a ``with``, which also closes W&B.

    Args:
        task: scores and draws.
        folder: of the run. ``train.csv`` and ``val.csv`` have the scalars, ``val_classes.csv`` the scores by
            class of the newest validation, ``curves.png`` and ``predictions.png`` the pictures.
        classes, palette: of the data set.
        start, validated: iterations that the run continues from, of training and of its newest validation; 0 for a
            new run.
        wandb: starts the W&B run in the folder; None for none.
    """

    def __init__(
        self,
        task: "Task",
        folder: Path,
        *,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        start: int = 0,
        validated: int = 0,
        wandb: "Callable[[Path], WandbRun] | None" = None,
    ):
        self.task, self.folder, self.classes, self.palette = task, folder, classes, palette
        self._train = ScalarFile(folder / "train.csv", keep_until=start)
        self._validation = ScalarFile(folder / "val.csv", keep_until=validated)
        self._wandb = wandb(folder) if wandb else None

    @property
    def wandb_id(self) -> str | None:
        """Id of the W&B run, if there is one."""
        return self._wandb.run_id if self._wandb else None

    def train(self, iteration: int, values: dict[str, float]) -> None:
        """Add the scalars of a training iteration."""
        self._train.add({"iteration": iteration} | values)
        if self._wandb:
            self._wandb.scalars(iteration, {f"train/{name}": value for name, value in values.items()})

    def validation(self, iteration: int, result: "TaskEvaluation") -> None:
        """Add a validation: scores in percent, the table by class, curves and predictions."""
        summary = result.scores.summary()
        table = result.scores.table(self.classes)
        by_class = {f"{table.header[1]}/{name}": share for name, share, *_ in table.rows[:-1]}
        self._validation.add({"iteration": iteration} | summary | {"images_per_s": result.images_per_s} | by_class)
        table.write_csv(self.folder / "val_classes.csv")
        charts.save_curves(self.folder / "curves.png", self._train.rows, self._validation.rows, list(summary)[:2])
        self.task.save_panel(self.folder / "predictions.png", result.samples, self.classes, self.palette)
        if self._wandb:
            self._wandb.scalars(iteration, {f"val/{name}": value for name, value in summary.items()})
            panels = self.task.wandb_panels(result.samples, self.classes)
            self._wandb.validation(iteration, *table, panels)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wandb:
            self._wandb.close(failed=kind is not None)
