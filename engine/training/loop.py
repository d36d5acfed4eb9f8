"""A training run under way."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.data import Dataset
from tqdm import tqdm

from ...data.training_samples import Seeded
from ..evaluation.protocols import Protocol
from ..evaluation.tasks import Task
from ..guards.settings import plain
from ..runtime.distributed import any_of_all, rank, world_size
from ..runtime.stop_signals import Stopped, StopRequest
from .logger import NoLog, RunLog
from .nonfinite import Outcome, Watch
from .state import TrainingState
from .throughput import Pace
from .torch_step import Step


class Run:
    """Steps, log lines, validations and checkpoints in their order, until the last iteration or a request to stop.

    Args:
        config: of the run; it says when to log, validate and save.
        folder: everything is written into it.
        task, protocol: of the validations.
        step: makes one.
        device: of the validations.
        state: of the run, at the iteration to go on from.
        samples: of training.
        val_set: of the validations.
        log: where the numbers go.
        request: to stop.

    Attributes:
        val_images_per_s: of the newest validation.
    """

    def __init__(
        self,
        config: DictConfig,
        folder: Path,
        *,
        task: Task,
        protocol: Protocol,
        step: Step,
        device: torch.device,
        state: TrainingState,
        samples: Seeded,
        val_set: Dataset,
        log: RunLog | NoLog,
        request: StopRequest,
    ):
        self.config, self.folder = config, folder
        self.task, self.protocol, self.step, self.device, self.state = task, protocol, step, device, state
        self.samples, self.val_set, self.log, self.request = samples, val_set, log, request
        self.val_images_per_s = 0.0
        self._resolved = plain(config)
        self._pace = Pace()
        self._watch = Watch(
            allowed=config.skip_nonfinite,
            skipped=state.skipped,
            names=lambda iteration: samples.names(iteration, config.recipe.batch_size),
            say=self.say,
        )

    def say(self, text: str) -> None:
        """Print a line beside the progress bar; the first process does."""
        if not rank():
            tqdm.write(text)

    def fit(self, batches: Iterable[tuple[tuple[Any, Any], float]]) -> None:
        """Train on ((images, labels), seconds waited), one batch per iteration that is left.

        Raises:
            NonFiniteLoss: more steps than ``skip_nonfinite`` were not finite; the weights have not moved with them.
            Stopped: by the request; a checkpoint is written.
        """
        try:
            self._fit(batches)
        except Stopped:
            self.say(f"stopped after iteration {self.state.iteration}, continue with resume={self.folder}")
            raise

    def _fit(self, batches: Iterable[tuple[tuple[Any, Any], float]]) -> None:
        last, state = self.config.recipe.max_iters, self.state
        with tqdm(total=last, initial=state.iteration, dynamic_ncols=True, desc="train", disable=rank() > 0) as bar:
            self._validate_if_due()
            for (images, labels), waited in batches:
                learning_rate = state.learning_rate
                outcome = self.step(images, labels, state.iteration)
                self._watch.add(state.iteration, outcome)
                state.advance()
                self._pace.add(len(images) * world_size(), waited)
                bar.update()
                if state.iteration % self.config.log_every == 0:
                    bar.set_postfix(self._log(outcome, learning_rate))
                if not self._validate_if_due() and state.iteration % (self.config.save_every or last) == 0:
                    self.save()
                if any_of_all(self.request.received is not None) and state.iteration < last:
                    self.save()
                    self.request.stop()

    def save(self, *, best: bool = False) -> None:
        """Write the checkpoint, of steps that were all finite."""
        self._watch.read()
        self.state.skipped = self._watch.skipped
        self.step.write_back()
        self.state.save(self.folder, self._resolved, self.samples.dataset, best=best)

    def _log(self, outcome: Outcome, learning_rate: float) -> dict[str, str]:
        """Add a line to the log; returns what of it the progress bar shows."""
        self._watch.read()
        pace = self._pace.read()
        memory = {"memory_mib": self.step.peak_memory_mib()}
        numbers = outcome.numbers()
        self.log.train(self.state.iteration, numbers | {"lr": learning_rate} | pace | memory)
        return {
            "loss": f"{numbers['loss']:.3f}",
            "lr": f"{learning_rate:.1e}",
            "img/s": f"{pace['images_per_s']:.1f}",
            "step": f"{pace['step_s']:.3f}s",
            "wait": f"{pace['data_wait']:.0%}",
            "mem": f"{memory['memory_mib'] / 1024:.1f}G",
        }

    def _validate_if_due(self) -> bool:
        if not self.state.validation_due(self.config.recipe.val_every, self.config.recipe.max_iters):
            return False
        self.save()  # a validation may be dropped: resuming starts with it
        with self.request.at_once():
            result = self.task.evaluate(
                self.step.evaluated(),
                self.val_set,
                self.protocol,
                device=self.device,
                bf16=self.config.bf16,
                num_workers=self.config.num_workers,
                keep_samples=4,
            )
        self.log.validation(self.state.iteration, result)
        name, score = next(iter(result.scores.summary().items()))
        self.say(f"iteration {self.state.iteration}: {name} {score:.2f}")
        self.val_images_per_s = result.images_per_s
        self.save(best=self.state.take(result.scores))
        self._pace.restart()
        return True
