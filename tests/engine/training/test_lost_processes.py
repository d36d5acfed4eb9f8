"""Runs of two processes, one of which fails, dies or stops."""

import os
import re
import signal
import time
from datetime import timedelta
from functools import partial

import pytest
import torch
from conftest import PATIENCE, at_call, torchrun_variables
from interrupted_runs import Run, assert_same, newest, nothing_left_behind  # noqa: F401, fixture

pytestmark = pytest.mark.slow


def pair(folder, **named):
    """Start two processes of one run, as ``torchrun`` does."""
    return [Run(folder, "num_workers=0", environment=variables, **named) for variables in torchrun_variables()]


def break_a_picture_of_the_second():
    if os.environ["RANK"] == "1":
        from ccnet.data.sets.synthetic import Beacons

        read = Beacons.__getitem__

        def broken(self, index):
            if self.split == "train" and torch.distributed.is_initialized():
                raise ValueError(f"beacon {index} is broken")
            return read(self, index)

        Beacons.__getitem__ = broken


def signalled_at_fourth(number, ranks):
    """Send a signal to the processes in `ranks` in their fourth step."""
    from ccnet.engine.training.steps import torch_step

    def signalled():
        if os.environ["RANK"] in ranks:
            os.kill(os.getpid(), number)

    torch_step.train_step = at_call(4, signalled, torch_step.train_step)


def test_two_processes_resume_after_one_of_them_has_died(tmp_path):
    unbroken = pair(tmp_path / "whole")
    broken = pair(tmp_path / "own", hook=break_a_picture_of_the_second)
    assert [run.wait() for run in broken] == [1, 1], broken[0].text + broken[1].text
    assert re.search(r"process 1: error: beacon \d is broken", broken[1].text)
    assert "process 0: error: another process of this run has died" in broken[0].text
    assert [run.wait() for run in unbroken] == [0, 0], unbroken[0].text + unbroken[1].text
    assert unbroken[1].text == "" and "Warning" not in unbroken[0].text
    folder = tmp_path / "cut" / "runs" / "new"
    runs = pair(tmp_path / "cut", hook=partial(signalled_at_fourth, signal.SIGKILL, "1"))
    assert [run.wait() for run in runs] == [1, -signal.SIGKILL]
    assert "process 0: error: another process of this run has died" in runs[0].text
    assert newest(folder).iteration == 3
    runs = pair(tmp_path / "cut", hook=partial(signalled_at_fourth, signal.SIGTERM, "01"))
    assert [run.wait() for run in runs] == [75, 75], runs[0].text + runs[1].text
    runs = pair(tmp_path / "cut")
    assert [run.wait() for run in runs] == [0, 0], runs[0].text
    assert_same(tmp_path / "whole" / "runs" / "new", folder)
    assert len(newest(folder).training["random"]) == 2


def stopped_at_fourth(wait):
    """Stop the second process in its fourth step, for which the first one then waits for ``wait`` seconds."""
    from ccnet.engine.runtime import distributed
    from ccnet.engine.training.steps import torch_step

    distributed._ROLL_CALL = 1.0

    def stopped():
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=wait))
        print("waiting")

    torch_step.train_step = at_call(4, stopped, torch_step.train_step)


def test_a_stopped_process_is_named_after_the_timeout(tmp_path):
    runs = pair(tmp_path, hook=partial(stopped_at_fourth, 1))
    assert runs[0].wait() == 1
    named = r"process 0: error: .* \(collective_timeout\), but process 1 of 0 to 1 has not taken part: .*resume=auto"
    assert re.search(named, runs[0].text)
    assert "Traceback" not in runs[0].text
    assert newest(tmp_path / "runs" / "new").iteration == 3


def test_a_second_signal_ends_a_process_that_waits_for_a_stopped_one(tmp_path):
    runs = pair(tmp_path, hook=partial(stopped_at_fourth, PATIENCE))
    assert runs[0].until(lambda: "waiting" in runs[0].text), runs[0].text
    time.sleep(0.5)
    runs[0].signal(signal.SIGTERM, all=False)
    time.sleep(1.5)  # longer than the second within which it counts as the same request
    assert runs[0].running
    runs[0].signal(signal.SIGTERM, all=False)
    assert runs[0].wait() == -signal.SIGTERM
