"""The training loop: steps, logging, validation and checkpoints until the last iteration or a stop request."""

import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from ...data.dataset import ImageDataset
from ...data.loader import Loader
from ...data.training_samples import Seeded
from ..evaluation.tasks import Task, headline_text, monitored_score
from ..guards.settings import plain
from ..runtime.distributed import any_of_all, from_all, rank, world_size
from ..runtime.progress import Progress
from ..runtime.stop_signals import Stopped, StopRequest
from .batches import prefetch
from .logger import NoLog, RunLog
from .state import TrainingState
from .steps.nonfinite import NonFiniteDetector, Outcome
from .steps.torch_step import Step
from .throughput import Throughput


@dataclass(kw_only=True)
class Run:
    """A training run in progress.

    Attributes:
        config: the complete configuration of the run, which is stored in its checkpoints.
        folder: the output folder of the run.
        task: the task, which runs and scores validations.
        state: the weights, the optimiser and the iteration to continue from.
        step: the training step.
        device: the device that validations run on.
        loader: the loader of the remaining training batches.
        val_set: the validation data set.
        log: the log that metrics are written to.
        request: the stop request, set by a signal.
        samples: the training samples, which also record the unreadable images.
    """

    config: DictConfig
    folder: Path
    task: Task
    state: TrainingState
    step: Step
    device: torch.device
    loader: Loader
    val_set: ImageDataset
    log: RunLog | NoLog
    request: StopRequest

    def __post_init__(self) -> None:
        self.samples = cast(Seeded, self.loader.dataset)
        self._plain_config = plain(self.config)
        self._protocol = instantiate(self.config.protocol)
        self._throughput = Throughput(self.loader)
        self._nonfinite = NonFiniteDetector(
            allowed=self.config.skip_nonfinite,
            skipped=self.state.skipped,
            names=lambda iteration: self.samples.names(iteration, self.config.recipe.batch_size),
            say=self.say,
        )

    def say(self, text: str) -> None:
        """Print a line above the progress bar, on rank 0 only."""
        if not rank():
            tqdm.write(text)
            sys.stdout.flush()  # a log file is buffered, and its last lines would be lost if the run were killed

    def fit(self) -> None:
        """Train until the last iteration, or until the score has not improved for ``recipe.patience`` validations.

        Raises:
            NonFiniteLoss: more than ``skip_nonfinite`` steps were not finite; none of them changed the weights.
            Stopped: a signal requested it; a checkpoint has been written.
        """
        try:
            self._fit()
        except Stopped:
            with suppress(OSError):  # the terminal may be closed
                self.say(
                    f"stopped after iteration {self.state.iteration}, continue with {quote(f'resume={self.folder}')}"
                )
            raise

    def _fit(self) -> None:
        last, patience, state = self.config.recipe.max_iters, self.config.recipe.patience, self.state
        with Progress("train", "iteration", last, done=state.iteration, first_line=True) as progress:
            self._validate_if_due()  # before the workers start; a run stopped during a validation repeats it
            if state.is_exhausted(patience):
                return
            with closing(prefetch(iter(self.loader), self.step.place, self.device)) as batches:
                for images, labels in batches:
                    learning_rate = state.learning_rate
                    outcome = self.step(images, labels, state.iteration)
                    self._nonfinite.add(state.iteration, outcome)
                    state.advance()
                    self._throughput.add(len(images) * world_size())
                    progress.advance()
                    if state.iteration % self.config.log_every == 0 or state.iteration == last:
                        self._log(outcome, learning_rate, progress)
                    if not self._validate_if_due() and state.iteration % (self.config.save_every or last) == 0:
                        self.save()
                    if state.is_exhausted(patience):
                        return
                    if any_of_all(self.request.received is not None) and state.iteration < last:
                        self.save()
                        self.request.stop()

    @property
    def empty_batches(self) -> int:
        """The number of batches without a labelled pixel since the run was started or resumed."""
        return self._nonfinite.empty

    def unreadable(self) -> int:
        """Return the number of images that some process could not read; must be called by all processes."""
        return sum(map(any, zip(*from_all(self.samples.broken.tolist()), strict=True)))

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint, or raise NonFiniteLoss if more than ``skip_nonfinite`` steps were not finite."""
        self._nonfinite.check()
        self.state.skipped = self._nonfinite.skipped
        self.step.write_back()
        self.state.save(self.folder, self._plain_config, self.samples.dataset, best=best)

    def _log(self, outcome: Outcome, learning_rate: float, progress: Progress) -> None:
        """Log the current metrics, and show some of them."""
        self._nonfinite.check()
        speed = self._throughput.read()
        memory = {"memory_mib": self.step.peak_memory_mib()}
        numbers = outcome.numbers()
        self.log.train(self.state.iteration, numbers | {"lr": learning_rate} | speed | memory)
        shown = {
            "loss": f"{numbers['loss']:.3f}",
            "lr": f"{learning_rate:.1e}",
            "img/s": f"{speed['images_per_s']:.1f}",
            "step": f"{speed['step_s']:.3f}s",
            "wait": f"{speed['data_wait']:.0%}",
            "mem": f"{memory['memory_mib'] / 1024:.1f}G",
        }
        progress.show(shown, seconds_per_step=speed["step_s"])

    def _validate_if_due(self) -> bool:
        if not self.state.validation_due(self.config.recipe.val_every, self.config.recipe.max_iters):
            return False
        self.save()  # if the validation is interrupted, the resumed run repeats it
        with self.request.at_once():
            result = self.task.evaluate(
                self.state.ema.network if self.state.ema else self.step.evaluated(),
                self.val_set,
                self._protocol,
                device=self.device,
                bf16=self.config.bf16,
                num_workers=self.config.num_workers,
                keep_samples=4,
            )
        self.log.validation(self.state.iteration, result)
        self.say(f"iteration {self.state.iteration}: {headline_text(result.scores)}")
        score = monitored_score(result.scores, self.val_set.classes, self.config.recipe.monitor)
        self.save(best=self.state.record(result.scores, score))
        self._throughput.restart()
        return True
