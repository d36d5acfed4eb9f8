"""What a training run is made of besides its configuration, to and from its checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from engine import checkpoint
from engine.checkpoint import Checkpoint
from engine.tasks import TaskScores


def check_finite(loss: Tensor, terms: dict[str, Tensor]) -> None:
    """Raise ValueError for a loss that no step should follow."""
    if not torch.isfinite(loss):
        listed = ", ".join(f"{name} {term.item():.3g}" for name, term in terms.items())
        raise ValueError(f"the loss is {loss.item()} ({listed}): lower recipe.lr, or look at the data")


class TrainingState:
    """Network, optimiser, schedule and random generators at an iteration.

    The data need none: a sample is a function of its number (see ``data/stream.py``).
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler):
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.iteration = 0
        self.best_score = -1.0
        self.wandb_id: str | None = None

    def save(self, folder: Path, scores: TaskScores, config: dict[str, Any], dataset: Dataset) -> None:
        """Write ``last.pt``, and ``best.safetensors`` if no validation before was better."""
        is_best = scores.headline >= self.best_score
        self.best_score = max(self.best_score, scores.headline)
        made = Checkpoint(
            weights=self.model.state_dict(),
            config=config,
            classes=list(dataset.classes),
            palette=[list(colour) for colour in dataset.palette],
            iteration=self.iteration,
            scores=scores._asdict(),
            training={
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "best_score": self.best_score,
                "wandb_id": self.wandb_id,
            },
        )
        if is_best:
            checkpoint.save(made, folder / "best.safetensors")
        checkpoint.save(made, folder / "last.pt")

    def restore(self, saved: Checkpoint) -> None:
        """Go back to where ``saved`` was made; the network has its weights already."""
        self.optimizer.load_state_dict(saved.training["optimizer"])
        self.schedule.load_state_dict(saved.training["schedule"])
        torch.set_rng_state(saved.training["random"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved.training["random_cuda"])
        self.iteration = saved.iteration
        self.best_score, self.wandb_id = saved.training["best_score"], saved.training["wandb_id"]
