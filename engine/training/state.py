"""The state of a training run, saved to and restored from checkpoints."""

import math
import re
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ...data.dataset import ImageDataset
from ..checkpoints import writing
from ..checkpoints.record import Checkpoint
from ..evaluation.tasks import TaskScores
from ..guards.optimizer_state import alike, optimizer_state
from ..resuming.identity import Identity
from ..runtime.distributed import from_all, rank
from ..runtime.run_folder import BEST, LAST, PREVIOUS
from .averaging import AveragedWeights

_WANDB_ID = re.compile(r"[^/\\#?%:\x00-\x1f]{1,128}")


class TrainingState:
    """The network, optimiser, schedule and random generators at an iteration.

    The data pipeline has no state: a sample depends only on the seed and its index (``data/training_samples.py``).

    Args:
        model: the torch network.
        optimizer: the optimiser of its parameters.
        schedule: the learning rate schedule of the optimiser.
        identity: the identity of the run.
        ema: the moving average of the weights, which ``best.safetensors`` contains in their place; None to disable.
        began: the start of this part of the run by ``perf_counter``; None for now.

    Attributes:
        iteration: the number of completed iterations.
        validated: the iteration of the latest validation.
        scores: the scores of the latest validation.
        skipped: the number of steps skipped because they were not finite.
        best_score: the best score so far, in [0, 1]; -1 until a validation has a score that is not NaN.
        stale: the number of validations since the score last improved.
        wandb_id: the id of the run in W&B.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        identity: Identity,
        *,
        ema: AveragedWeights | None = None,
        began: float | None = None,
    ):
        self.identity, self.ema = identity, ema
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.iteration: int = 0
        self.validated: int = 0
        self.scores: dict[str, Any] = {}
        self.skipped: int = 0
        self.best_score: float = -1.0
        self.stale: int = 0
        self.wandb_id: str | None = None
        self._began = time.perf_counter() if began is None else began
        self._seconds_before = 0.0  # the duration of the run up to the checkpoint that it was resumed from
        self._saved = 0  # the iteration of the latest checkpoint
        self._last_is_whole = True  # False if last.pt is damaged and the run resumed from previous.pt

    @property
    def score(self) -> float | None:
        """The best score so far, in [0, 1]; None if there is none."""
        return None if self.best_score < 0 else self.best_score

    @property
    def seconds(self) -> float:
        """The duration of the run so far, over all its parts, without work that was lost."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step for parameters with a learning rate factor of 1."""
        factors = [group.get("lr_factor", 1.0) for group in self.optimizer.param_groups]
        # Not every schedule is proportional to the factor: a minimum such as eta_min is the same for all groups.
        index = factors.index(1.0) if 1.0 in factors else 0
        return float(self.schedule.get_last_lr()[index]) / factors[index]

    def advance(self) -> None:
        """Advance the schedule, the average of the weights and the iteration counter after a step."""
        if self.ema:
            self.ema.update(self.iteration)
        self.schedule.step()
        self.iteration += 1

    def validation_due(self, every: int, last: int) -> bool:
        """Return True if a validation is due at this iteration and has not been done yet."""
        return self.validated < self.iteration and (self.iteration % every == 0 or self.iteration == last)

    def is_exhausted(self, patience: int | None) -> bool:
        """Return True if `patience` is set and the score has not improved for that many validations."""
        return patience is not None and self.stale >= patience

    def record(self, scores: TaskScores, score: float) -> bool:
        """Record a validation; return True if no earlier one was better.

        Args:
            scores: the scores of the validation.
            score: the score that selects the best checkpoint, in [0, 1]. NaN is worse than any number.
        """
        score = -1.0 if math.isnan(score) else score
        is_best = score >= self.best_score
        self.stale = 0 if score > self.best_score else self.stale + 1
        self.best_score = max(self.best_score, score)
        self.validated, self.scores = self.iteration, scores._asdict()
        return is_best

    def save(self, folder: Path, config: dict[str, Any], dataset: ImageDataset, *, best: bool = False) -> None:
        """Write ``last.pt`` and, if `best`, also ``best.safetensors``; must be called by all processes.

        An existing ``last.pt`` is kept as ``previous.pt``, unless it is from the same iteration or damaged.
        """
        checkpoint = Checkpoint(
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
                "stale": self.stale,
                "seconds": self.seconds,
                "validated": self.validated,
                "skipped": self.skipped,
                "identity": self.identity.fingerprint,
                "contents": self.identity.contents,
                "choices": self.identity.choices,
                "overrides": self.identity.overrides,
                "wandb_id": self.wandb_id,
            }
            | ({"ema": self.ema.network.state_dict()} if self.ema else {}),
        )
        if rank():
            return
        if best:
            averaged = replace(checkpoint, weights=self.ema.network.state_dict()) if self.ema else checkpoint
            writing.save(averaged, folder / BEST)
        keep_last = self._saved != self.iteration and self._last_is_whole
        writing.save(checkpoint, folder / LAST, before=folder / PREVIOUS if keep_last else None)
        self._saved = self.iteration
        self._last_is_whole = True

    def restore(self, saved: Checkpoint, *, max_iters: int | None = None) -> None:
        """Continue from a checkpoint whose weights the network already has.

        Args:
            saved: the checkpoint.
            max_iters: the number of iterations of the whole run. If the checkpoint is from a run of another length, the
                schedule continues as in a run that had this length from the start; None for the same length.

        Raises:
            ValueError: its training state does not match this network and optimiser.
        """
        try:
            self._restore(saved, same_length=max_iters is None or max_iters == saved.config["recipe"]["max_iters"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"the training state in {saved.source} does not match this run: {error}") from error

    def _restore(self, saved: Checkpoint, *, same_length: bool) -> None:
        training = saved.training
        numbers = [] if same_length else _numbers_at(saved.iteration or 0, self.schedule)
        self.optimizer.load_state_dict(optimizer_state(training["optimizer"], self.optimizer))
        _lay_out_as_parameters(self.optimizer)
        if same_length:
            self.schedule.load_state_dict(alike(training["schedule"], self.schedule.state_dict(), "schedule"))
        for group, own in zip(self.optimizer.param_groups, numbers, strict=not same_length):
            group.update(own)
        if self.schedule.last_epoch != saved.iteration:
            raise ValueError(
                f"its schedule is at iteration {self.schedule.last_epoch} but its weights are from {saved.iteration}"
            )
        if self.ema:
            self.ema.load(training.get("ema"))
        states = training["random"]  # the same on all ranks, unless the network's random draws depend on the images
        _set_random_state(states[rank() if rank() < len(states) else 0])  # the run may have more processes now
        self.iteration = self._saved = self.schedule.last_epoch
        self._last_is_whole = saved.source is None or saved.source.name == LAST
        self.scores = saved.scores
        self.validated, self.skipped, self.best_score = (
            alike(training[key], 0, key) for key in ("validated", "skipped", "best_score")
        )
        self.stale = alike(training.get("stale", 0), 0, "stale")
        self._seconds_before = alike(training.get("seconds", 0.0), 0.0, "seconds")
        self.wandb_id = training["wandb_id"]
        if not (isinstance(training["identity"], str) and isinstance(self.wandb_id, str | None)):
            raise ValueError("identity and wandb_id must be strings")
        if self.wandb_id is not None and not _WANDB_ID.fullmatch(self.wandb_id):
            raise ValueError(f"{self.wandb_id[:80]!r} cannot be the id of a W&B run")


def _numbers_at(iteration: int, schedule: LRScheduler) -> list[dict[str, Any]]:
    """Advance a new schedule to an iteration; return each parameter group's options there, without its parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch expects an optimiser step before each
        for _ in range(iteration):
            schedule.step()
    return [
        {key: value for key, value in group.items() if key != "params"} for group in schedule.optimizer.param_groups
    ]


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Match the strides of the optimiser state to those of the parameters.

    Fused optimisers traverse a parameter and its state in memory order, which may differ in a checkpoint.
    """
    for parameter, entry in optimizer.state.items():
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _random_state() -> dict[str, torch.Tensor]:
    """Return the states of torch's random generators for the CPU and this process's GPU."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
