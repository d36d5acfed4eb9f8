"""The lines that a run prints at its start and end, and its result."""

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path

import torch
from torch import nn

from ...data.dataset import ImageDataset
from ..evaluation.tasks import Task, score_table
from .state import TrainingState


def opening_lines(model: nn.Module, train_set: ImageDataset, val_set: Sized, device: torch.device, folder: Path) -> str:
    """Return the lines printed at the start of a run."""
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return (
        f"{parameters:.1f} M parameters on {device}, {len(train_set)} training and {len(val_set)} validation images "
        f"of {len(train_set.classes)} classes\n{folder}"
    )


def run_result(task: Task, state: TrainingState, cost: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Return the result of a finished run: its scores in percent, the headline metric first, and its cost."""
    summary = task.scores(**state.scores).summary()
    best = {f"best_{next(iter(summary))}": 100 * state.best_score}
    return {**summary, **best, **cost, "iterations": state.iteration, "seconds": seconds}


def closing_lines(task: Task, state: TrainingState, classes: Sequence[str], folder: Path, unreadable: int) -> str:
    """Return the lines printed at the end of a run: the per-class scores and the files that it has written."""
    files = {
        "scores": "val.csv",
        "curves": "curves.png",
        "predictions": "predictions.png",
        "best weights": "best.safetensors",
    }
    lines = [f"\n{score_table(task.scores(**state.scores), classes)}\n"]
    lines += [f"{what:13}{folder / name}" for what, name in files.items()]
    if unreadable or state.skipped:
        lines.append(f"skipped      {unreadable} unreadable images, {state.skipped} steps that were not finite")
    return "\n".join(lines)
