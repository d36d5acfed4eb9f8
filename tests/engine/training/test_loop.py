"""The training loop around a step that computes nothing: what is logged, skipped and validated, and when it stops."""

from functools import partial

import pytest
import torch
from conftest import composed
from two_processes import together

from ccnet.engine import checkpoints
from ccnet.engine.evaluation.confusion import Scores
from ccnet.engine.evaluation.segmentation import Evaluation
from ccnet.engine.resuming import Identity
from ccnet.engine.runtime import Stopped, StopRequest
from ccnet.engine.training import NonFiniteLoss, Run, TrainingState, remaining_batches
from ccnet.engine.training.steps.nonfinite import Outcome


class Numbers(torch.utils.data.Dataset):
    """Seven images, each of which is its own index."""

    classes, palette = ("a", "b"), ((0, 0, 0), (255, 255, 255))

    def __len__(self):
        return 7

    def name(self, index):
        return f"image {index}"

    def __getitem__(self, index):
        return torch.tensor(index), torch.tensor(0)


class Loop:
    """A run that records its batches, learning rates, validations and log; it is its own task, step and log.

    Args:
        folder: the folder of the run.
        *overrides: the options of the run.
        losses: the losses of some iterations (0-based); the others are 1.
        during: functions to call with the loop in every "step", "evaluation" or "validation", which logs the scores.
    """

    collate = None

    def __init__(self, folder, *overrides, losses=None, **during):
        self.losses, self.during = losses or {}, during
        self.batches, self.rates, self.evaluations, self.rows = [], [], [], {}
        self.config, self.folder, self.request = composed("num_classes=2", *overrides), folder, StopRequest()
        self.network = torch.nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.state = TrainingState(self.network, self.optimizer, schedule, Identity("", {}, {}, {}))

    def run(self):
        loader = remaining_batches(self.config, Numbers(), self, start=self.state.iteration)
        return Run(
            config=self.config, folder=self.folder, task=self, state=self.state, step=self, device=torch.device("cpu"),
            loader=loader, val_set=Numbers(), log=self, request=self.request,
        )  # fmt: skip

    def fit(self):
        self.run().fit()
        return self

    def call(self, name):
        self.during.get(name, lambda loop: None)(self)

    # ---- the step

    def place(self, images, labels):
        return images, labels

    def __call__(self, images, labels, iteration):
        self.batches.append(images.tolist())
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.call("step")
        return Outcome(torch.tensor(self.losses.get(iteration, 1.0)), {}, torch.tensor(1.0))

    def evaluated(self):
        return self.network

    def write_back(self):
        pass

    def peak_memory_mib(self):
        return 0.0

    # ---- the task and the log

    def evaluate(self, network, dataset, protocol, **options):
        self.evaluations.append(options)
        self.call("evaluation")
        return Evaluation(Scores(0.5, 0.5, 0.5, [0.5] * 2, [0.5] * 2), 1.0, [], torch.zeros(2, 2))

    def train(self, iteration, values):
        self.rows[iteration] = values

    def validation(self, iteration, result):
        self.call("validation")


def test_every_step_is_logged_with_its_own_learning_rate_and_the_last_one_always(tmp_path):
    loop = Loop(tmp_path, "log_every=2", "recipe.max_iters=5", "recipe.val_every=10").fit()
    assert loop.rates == [1, 0.5, 0.25, 0.125, 0.0625]
    assert {iteration: values["lr"] for iteration, values in loop.rows.items()} == {2: 0.5, 4: 0.125, 5: 0.0625}


def test_the_logged_speed_excludes_validations(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("ccnet.engine.training.throughput.time.perf_counter", lambda: clock[0])

    def takes(seconds):
        return lambda loop: clock.__setitem__(0, clock[0] + seconds)

    loop = Loop(tmp_path, step=takes(1), evaluation=takes(100)).fit()
    assert len(loop.evaluations) == 2
    assert [(row["step_s"], row["images_per_s"]) for row in loop.rows.values()] == [(1, 2)] * 4


def test_a_step_that_is_not_finite_is_reported_with_its_batch(tmp_path, capsys):
    losses = {1: float("nan")}
    loop = Loop(tmp_path, "skip_nonfinite=1", losses=losses).fit()
    named = ", ".join(f"image {index}" for index in loop.batches[1])
    (line,) = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped step 1 of at most 1: ")
    )
    assert "iteration 2: the loss is nan" in line and line.endswith(f"Batch: {named}")
    assert loop.state.skipped == 1
    again = Loop(tmp_path, "skip_nonfinite=1", losses=losses)
    again.state.skipped = 1  # in an earlier part of the run, which was resumed
    with pytest.raises(NonFiniteLoss, match=f"iteration 2: .* Batch: {named}$"):
        again.fit()


def test_an_image_that_two_processes_cannot_read_is_counted_once(tmp_path, monkeypatch):
    elsewhere = [False, True, True, False, False, False, False]
    monkeypatch.setattr("ccnet.engine.training.loop.from_all", lambda own: [own, elsewhere])
    run = Loop(tmp_path).run()
    run.samples.broken[[1, 4]] = True
    assert run.unreadable() == 3


@pytest.mark.parametrize("bf16", [True, False])
def test_a_run_is_validated_in_its_own_precision(tmp_path, bf16):
    loop = Loop(tmp_path, f"bf16={bf16}").fit()
    assert [options["bf16"] for options in loop.evaluations] == [bf16] * 2


def ask(loop):
    loop.request.received = "SIGTERM"


def kept(loop, name="last.pt"):
    """Return the iteration from which a run killed now would continue: that of its checkpoint, or 0 without one."""
    path = loop.folder / name
    return checkpoints.load(path).iteration if path.exists() else 0


@pytest.mark.parametrize(("every", "before_each_step"), [("2", [0, 0, 2, 2, 4]), ("null", [0] * 5)])
def test_a_kill_loses_the_steps_since_the_last_checkpoint_and_a_request_to_stop_none(tmp_path, every, before_each_step):
    options = ["recipe.max_iters=5", "recipe.val_every=9", f"save_every={every}"]
    seen = []
    loop = Loop(tmp_path, *options, step=lambda loop: seen.append(kept(loop))).fit()
    assert (seen, kept(loop)) == (before_each_step, 5)
    assert kept(loop, "previous.pt") == before_each_step[-1]  # not also 5, although a validation saves twice
    (tmp_path / "stopped").mkdir()
    stopped = Loop(tmp_path / "stopped", *options, step=lambda loop: loop.state.iteration == 2 and ask(loop))
    with pytest.raises(Stopped):
        stopped.fit()
    assert kept(stopped) == 3


def test_a_run_that_has_just_finished_is_not_stopped(tmp_path):
    loop = Loop(tmp_path, "recipe.val_every=4", validation=ask).fit()
    assert loop.request.received and loop.state.iteration == loop.state.validated == 4


def test_a_run_that_has_run_out_of_patience_is_not_continued(tmp_path):
    """The run may have been killed between its last validation and the writing of its result."""
    loop = Loop(tmp_path, "recipe.patience=2")
    loop.state.stale = 2
    assert loop.fit().batches == []


def one_of_two(rank, folder):
    """Train in two processes, of which the second is asked to stop in its second step."""
    loop = Loop(folder, "recipe.batch_size=4", "recipe.val_every=4", step=ask_in_second if rank else print)
    with pytest.raises(Stopped):
        loop.fit()
    images = [round(row["images_per_s"] * row["step_s"]) for row in loop.rows.values()]
    return {"iteration": loop.state.iteration, "images": images}


def ask_in_second(loop):
    if len(loop.batches) == 2:
        ask(loop)


@pytest.mark.slow
def test_processes_stop_together_and_log_the_images_of_all(tmp_path):
    (tmp_path / "run").mkdir()
    found = together(partial(one_of_two, folder=tmp_path / "run"), tmp_path)
    assert found == [{"iteration": 2, "images": [4, 4]}] * 2
