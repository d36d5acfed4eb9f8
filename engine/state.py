"""What a training run is made of besides its configuration, to and from its checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from engine import checkpoint
from engine.checkpoint import Checkpoint
from engine.distributed import from_all, rank
from engine.tasks import TaskScores


class NonFiniteLoss(ValueError):
    """The loss or one of its terms is infinite or no number."""


def check_finite(loss: Tensor, terms: dict[str, Tensor]) -> None:
    """Raise NonFiniteLoss for a loss that no step should follow."""
    if not torch.isfinite(loss):
        listed = ", ".join(f"{name} {term.item():.3g}" for name, term in terms.items())
        raise NonFiniteLoss(f"the loss is {loss.item()} ({listed}): lower recipe.lr, or look at the data")


class TrainingState:
    """Network, optimiser, schedule and random generators at an iteration.

    The data need none: a sample is a function of its number (see ``data/stream.py``).
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler, identity: str):
        self.identity = identity  # of the configuration
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.iteration = 0
        self.validated = 0  # iteration of the newest validation
        self.scores: dict[str, Any] = {}  # of it
        self.skipped = 0  # steps left out because their loss was not finite
        self.best_score = -1.0
        self.wandb_id: str | None = None

    def validation_due(self, every: int, last: int) -> bool:
        """Whether this iteration is one to validate at, and has not been."""
        return self.validated < self.iteration and (self.iteration % every == 0 or self.iteration == last)

    def take(self, scores: TaskScores) -> bool:
        """Remember the scores of a validation; whether no one before was better."""
        is_best = scores.headline >= self.best_score
        self.best_score = max(self.best_score, scores.headline)
        self.validated, self.scores = self.iteration, scores._asdict()
        return is_best

    def save(self, folder: Path, config: dict[str, Any], dataset: Dataset, *, best: bool = False) -> None:
        """Write ``last.pt``, with ``best`` also ``best.safetensors``; for all processes to call."""
        made = Checkpoint(
            weights=self.model.state_dict(),
            config=config,
            classes=list(dataset.classes),
            palette=[list(colour) for colour in dataset.palette],
            iteration=self.iteration,
            scores=self.scores,
            training={
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "random": from_all(_random_state()),
                "best_score": self.best_score,
                "validated": self.validated,
                "skipped": self.skipped,
                "identity": self.identity,
                "wandb_id": self.wandb_id,
            },
        )
        if rank():
            return
        if best:
            checkpoint.save(made, folder / "best.safetensors")
        checkpoint.save(made, folder / "last.pt")

    def restore(self, saved: Checkpoint) -> None:
        """Go back to where ``saved`` was made; the network has its weights already."""
        self.optimizer.load_state_dict(saved.training["optimizer"])
        self.schedule.load_state_dict(saved.training["schedule"])
        if rank() < len(saved.training["random"]):  # else the run goes on with more processes than it had
            _set_random_state(saved.training["random"][rank()])
        self.iteration, self.scores = saved.iteration, saved.scores
        self.validated, self.skipped = saved.training["validated"], saved.training["skipped"]
        self.best_score, self.wandb_id = saved.training["best_score"], saved.training["wandb_id"]


def _random_state() -> dict[str, torch.Tensor]:
    """Of this process: torch's generators on the host and on its GPU."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
