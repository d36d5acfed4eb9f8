"""The reports of a run: its W&B run, its result, and the lines printed at its end."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import composed

from ccnet.engine.evaluation.confusion import Scores
from ccnet.engine.evaluation.segmentation import Evaluation
from ccnet.engine.evaluation.tasks import Semantic
from ccnet.engine.guards import plain
from ccnet.engine.training.logger import open_log
from ccnet.engine.training.summary import closing_lines, run_result

SCORES = Scores(0.25, 0.5, 0.75, [0.125, 0.375], [0.5, 1.0])
DATASET = SimpleNamespace(classes=["road", "car"], palette=[[0, 0, 0], [255, 255, 255]])


class Recorder:
    """A W&B run that records the calls to its methods."""

    run_id = "assigned"

    def __init__(self, **about):
        self.calls = [("start", about)]

    def __getattr__(self, name):
        return lambda *values, **named: self.calls.append((name, *values, *named.items()))


@pytest.fixture
def recorded(monkeypatch):
    """Return the list of the W&B runs that are started."""
    runs = []

    def start(folder, **about):
        runs.append(Recorder(**about))
        return runs[-1]

    monkeypatch.setattr("ccnet.engine.training.logger.instantiate", lambda _: start)
    return runs


def opened(folder, *overrides, state):
    task = SimpleNamespace(save_panel=lambda *_: None, wandb_panels=lambda samples, _: ["drawn"] * len(samples))
    return open_log(
        composed("logger=wandb", *overrides), folder, task=task, dataset=DATASET, state=state, group="sweep"
    )


def test_wandb_receives_the_configuration_and_every_number(recorded, tmp_path):
    state = SimpleNamespace(iteration=0, validated=0, wandb_id=None)
    with pytest.raises(KeyError), opened(tmp_path / "runs" / "new", state=state) as log:
        log.train(1, {"loss": 2.0})
        log.validation(1, Evaluation(SCORES, 10.0, [(torch.full((3, 1, 2), 0.2),)], torch.zeros(2, 2)))
        raise KeyError
    (run,) = recorded
    ((pixels, drawn),) = panels = run.calls[3][-1]
    assert pixels.tolist() == [[[51] * 3] * 2] and pixels.dtype == np.uint8 and drawn == "drawn"
    about = {"name": "runs/new", "group": "sweep", "config": plain(composed("logger=wandb")), "run_id": None}
    rows = [("road", 12.5, 50), ("car", 37.5, 100), ("mean", 25, 75)]
    assert run.calls == [
        ("start", about),
        ("scalars", 1, {"train/loss": 2.0}),
        ("scalars", 1, {"val/mIoU": 25, "val/pixel_acc": 50, "val/mean_acc": 75}),
        ("validation", 1, ("class", "IoU", "accuracy"), rows, panels),
        ("close", ("failed", True)),
    ]
    assert state.wandb_id == "assigned"


def test_a_resumed_run_continues_its_wandb_run_if_its_files_are_there(recorded, tmp_path, capsys):
    for number in range(2):
        state = SimpleNamespace(iteration=1, validated=0, wandb_id="abcd")
        with opened(tmp_path, "logger.group=own", state=state):
            pass
        run = recorded[number]
        assert run.calls[0][1]["run_id"] == (None, "abcd")[number]
        assert (run.calls[0][1]["group"], run.calls[-1]) == ("own", ("close", ("failed", False)))
        (tmp_path / "wandb" / "run-20260101_000000-abcd").mkdir(parents=True, exist_ok=True)
    assert capsys.readouterr().out.count("has no files of the run abcd") == 1


def test_only_the_first_process_writes_a_log(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr("ccnet.engine.training.logger.rank", lambda: 1)
    with opened(tmp_path / "run", state=None) as log:
        log.train(1, {"loss": 2.0})
        log.validation(1, Evaluation(SCORES, 10.0, [], torch.zeros(2, 2)))
    assert (recorded, [*tmp_path.iterdir()]) == ([], [])


def ended(folder, *overrides, score=0.5, stale=0, skipped=0):
    """Return a run that has ended."""
    state = SimpleNamespace(
        scores=SCORES._asdict(), score=score, iteration=4, seconds=9.0, stale=stale, skipped=skipped,
        is_exhausted=lambda patience: stale == patience,
    )  # fmt: skip
    return SimpleNamespace(
        state=state, config=composed(*overrides), task=Semantic(), folder=folder, empty_batches=0,
        samples=SimpleNamespace(dataset=DATASET),
    )  # fmt: skip


def test_the_result_is_in_percent_with_the_headline_metric_first(tmp_path):
    result = run_result(ended(tmp_path), {"gflops": 3.0})
    assert list(result.items()) == [
        ("mIoU", 25), ("pixel_acc", 50), ("mean_acc", 75), ("best_mIoU", 50), ("gflops", 3), ("iterations", 4),
        ("seconds", 9),
    ]  # fmt: skip
    assert run_result(ended(tmp_path, "recipe.monitor=IoU/car"), {})["best_IoU/car"] == 50
    assert list(run_result(ended(tmp_path, score=None), {})) == ["error"]


def test_what_was_skipped_is_printed_at_the_end(tmp_path):
    assert "skipped" not in closing_lines(ended(tmp_path), unreadable=0)
    for unreadable, skipped in ((2, 0), (0, 3)):
        text = closing_lines(ended(tmp_path, skipped=skipped), unreadable=unreadable)
        assert text.endswith(f"\nskipped      {unreadable} unreadable images, {skipped} steps that were not finite")
