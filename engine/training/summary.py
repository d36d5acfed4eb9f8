"""The lines that a run prints at its start and end, and its result."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.tasks import Task, score_table
from ..runtime.run_folder import BEST
from .loop import Run
from .state import TrainingState

NO_SCORE = "no validation had anything to score, such as a labelled pixel: check the labels of the validation set"


def opening_lines(run: Run) -> str:
    """Return the lines printed at the start of a run."""
    parameters = sum(parameter.numel() for parameter in run.state.model.parameters()) / 1e6
    train_set = run.samples.dataset
    return (
        f"{parameters:.1f} M parameters on {run.device}, {len(train_set)} training and {len(run.val_set)} validation "
        f"images of {len(train_set.classes)} classes\n{run.folder}"
    )


def check_scores(task: Task, state: TrainingState, classes: Sequence[str]) -> None:
    """Raise ValueError unless the scores of a resumed run, from an untrusted checkpoint, are valid for its task."""
    if not state.scores and not state.validated:
        return
    try:
        score_table(task.scores(**state.scores), classes)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"the scores in the checkpoint are not those of a validation of this task: {error}") from error


def run_result(run: Run, cost: Mapping[str, float]) -> dict[str, Any]:
    """Return the result of a finished run: its scores in percent, the headline metric first, and its cost.

    A run without a score cannot be compared with others: its result is an error, as if it had failed.

    Args:
        run: the finished run.
        cost: the costs of the network, by name.
    """
    state, monitor = run.state, run.config.recipe.monitor
    if state.score is None:
        return {"error": NO_SCORE}
    summary = run.task.scores(**state.scores).summary()
    best = {f"best_{monitor or next(iter(summary))}": 100 * state.score}
    return {**summary, **best, **cost, "iterations": state.iteration, "seconds": state.seconds}


def closing_lines(run: Run, *, unreadable: int) -> str:
    """Return the lines printed at the end of a run: the scores of the last validation and the files written.

    The best weights are listed with their score, because the last validation may have a lower one.

    Args:
        run: the finished run.
        unreadable: the number of images that could not be read.
    """
    state, folder, recipe = run.state, run.folder, run.config.recipe
    scores = run.task.scores(**state.scores)
    files = {
        "scores": "val.csv",
        "curves": "curves.png",
        "predictions": "predictions.png",
        "best weights": BEST,
    }
    lines = [f"\n{score_table(scores, run.samples.dataset.classes)}\n"]
    lines += [f"{what:13}{folder / name}" for what, name in files.items() if (folder / name).exists()]
    if state.score is not None:
        lines.append(f"best score   {recipe.monitor or next(iter(scores.summary()))} {100 * state.score:.2f}")
    if state.is_exhausted(recipe.patience):
        lines.append(f"ended early  {state.stale} validations without a better score (recipe.patience)")
    if state.score is None:
        lines.append(f"no score     {NO_SCORE}")
    if unreadable or state.skipped:
        lines.append(f"skipped      {unreadable} unreadable images, {state.skipped} steps that were not finite")
    if run.empty_batches:
        lines.append(
            f"no labels    {run.empty_batches} batches without a labelled pixel, from which nothing was learned"
        )
    return "\n".join(lines)
