"""What a training run is made of besides its configuration, to and from its checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from ..checkpoints import checkpoint
from ..checkpoints.checkpoint import LAST, PREVIOUS, Checkpoint
from ..evaluation.tasks import TaskScores
from ..guards.optimizer_state import alike, optimizer_state
from ..runtime.distributed import from_all, rank


class TrainingState:
    """Network, optimiser, schedule and random generators at an iteration.

    The data need none: a sample is a function of its number (see ``data/training_samples.py``).
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
        self._saved = 0  # iteration of the newest checkpoint
        self._last_is_whole = True  # the last.pt that is there could be read

    @property
    def learning_rate(self) -> float:
        """Of the next step, of the first group of parameters."""
        return self.schedule.get_last_lr()[0]

    def advance(self) -> None:
        """Count a step that was made."""
        self.schedule.step()
        self.iteration += 1

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
        """Write ``last.pt``, with ``best`` also ``best.safetensors``; for all processes to call.

        The ``last.pt`` before stays as ``previous.pt``, unless it is of the same iteration or damaged.
        """
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
        checkpoint.save(made, folder / LAST, before=folder / PREVIOUS if self._keep_last else None)
        self._saved = self.iteration
        self._last_is_whole = True

    @property
    def _keep_last(self) -> bool:
        return self._saved != self.iteration and self._last_is_whole

    def restore(self, saved: Checkpoint) -> None:
        """Go back to where ``saved`` was made; the network has its weights already.

        Raises:
            ValueError: what it says of the training is not of this network and optimiser.
        """
        try:
            self._restore(saved)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{saved.source} does not hold the state of such a training: {error}") from error

    def _restore(self, saved: Checkpoint) -> None:
        training = saved.training
        self.optimizer.load_state_dict(optimizer_state(training["optimizer"], self.optimizer))
        _lay_out_as_parameters(self.optimizer)
        self.schedule.load_state_dict(alike(training["schedule"], self.schedule.state_dict(), "schedule"))
        if self.schedule.last_epoch != saved.iteration:
            raise ValueError(f"its schedule is at {self.schedule.last_epoch} and its weights at {saved.iteration}")
        if rank() < len(training["random"]):  # else the run goes on with more processes than it had
            _set_random_state(training["random"][rank()])
        self.iteration = self._saved = saved.iteration
        self._last_is_whole = saved.source is None or saved.source.name == LAST
        self.scores = saved.scores
        self.validated, self.skipped, self.best_score = (
            alike(training[key], 0, key) for key in ("validated", "skipped", "best_score")
        )
        self.identity, self.wandb_id = training["identity"], training["wandb_id"]
        if not (isinstance(self.identity, str) and isinstance(self.wandb_id, str | None)):
            raise ValueError("identity and wandb_id are no texts")


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Fused optimisers take a parameter and its state by their order in memory, which a checkpoint need not share."""
    for parameter, entry in optimizer.state.items():
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _random_state() -> dict[str, torch.Tensor]:
    """Of this process: torch's generators on the host and on its GPU."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
