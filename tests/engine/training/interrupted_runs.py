"""``train.py`` processes to kill or stop, and what they leave behind."""

import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE, ROOT, TINY, forked, members

from ccnet.engine import checkpoints
from ccnet.engine.runtime import LAST, PREVIOUS

KILLS = int(os.environ.get("KILLS", "0"))
ITERATIONS, VALIDATED = (3 * KILLS, 4) if KILLS else (10, 5)  # every so many
SMALL = [
    *TINY, f"recipe.max_iters={ITERATIONS}", f"recipe.val_every={VALIDATED}", "recipe.batch_size=4", "save_every=1",
    "num_workers=2", "resume=auto",
]  # fmt: skip
PART = ".last.pt.part"
STARTED = []


class Run:
    """A ``train.py`` process and its child processes.

    It is either forked from a server that has already imported torch, which takes seconds, or a ``python train.py``.
    """

    def __init__(self, folder, *arguments, command=None, environment=(), hook=None, pictures=False):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.output = folder, folder / f"{time.monotonic_ns()}.out"
        arguments = [*SMALL, f"hydra.run.dir={folder / 'runs' / 'new'}", *arguments]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **dict(environment)}
        if command:
            with open(self.output, "w") as output:
                self._process = subprocess.Popen(
                    [*command, ROOT / "train.py", *arguments], stdout=output, stderr=output, cwd=folder,
                    env=os.environ | environment, start_new_session=True,
                )  # fmt: skip
        else:
            named = {"output": self.output, "cwd": folder, "environment": environment}
            self._process = forked("train.py", arguments, **named, hook=hook, pictures=pictures)
        self.pid = self._process.pid
        STARTED.append(self)

    @property
    def text(self):
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    @property
    def running(self):
        return (self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode) is None

    @property
    def iteration(self):
        """The iteration in the latest row of the log."""
        lines = rows(self.folder / "runs" / "new" / "train.csv")
        return int(lines[-1]["iteration"]) if lines else 0

    def until(self, condition):
        """Wait for ``condition``; return False if the process ends first."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if not self.running:
                return condition()
            assert time.monotonic() < end, f"not seen within {PATIENCE} s: {self.text[-3000:]}"
            time.sleep(0.002)
        return True

    def signal(self, number, *, all=True):
        """Send a signal to all processes, as clusters do, or only to the first one."""
        own_group = all and os.getpgid(self.pid) == self.pid  # false if the process has only just started
        (os.killpg if own_group else os.kill)(self.pid, number)

    def hold(self):
        """Pause the process so that nothing changes during inspection."""
        self.signal(signal.SIGSTOP, all=False)
        self.until(lambda: Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")

    def held_while_writing(self):
        """Pause the process while a checkpoint is partly written; return False if it ends first."""
        part = self.folder / "runs" / "new" / PART
        while self.until(part.exists):
            self.hold()
            if part.exists():
                return True
            self.signal(signal.SIGCONT, all=False)
        return False

    def wait(self):
        """Wait until none of its processes is left and return the exit code."""
        self.until(lambda: not self.running)
        code = self._process.wait() if isinstance(self._process, subprocess.Popen) else self._process.exitcode
        end = time.monotonic() + PATIENCE  # data workers only notice after a while that their parent has died
        while members(self.pid):
            assert time.monotonic() < end, f"left behind: {members(self.pid)}"
            time.sleep(0.05)
        return code


def rows(path):
    if not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return list(csv.DictReader(lines))


def newest(folder):
    """Return the checkpoint that a run would resume from; None if there is none yet."""
    for name in (LAST, PREVIOUS):
        if (folder / name).exists():
            return checkpoints.load(folder / name)
    return None


def assert_same(one, two):
    """Assert that checkpoints, logs and files of two runs are equal, except for times."""
    first, second = newest(one), newest(two)
    assert first.iteration == second.iteration == ITERATIONS
    assert first.weights.keys() == second.weights.keys()
    assert all(torch.equal(values, second.weights[name]) for name, values in first.weights.items())
    states = [saved.training["optimizer"]["state"] for saved in (first, second)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(torch.equal(values, states[1][key][name]) for name, values in state.items() if name != "step")
    assert first.training["best_score"] == second.training["best_score"]
    for name, every in (("train.csv", 1), ("val.csv", VALIDATED)):
        logs = [rows(folder / name) for folder in (one, two)]
        assert [int(row["iteration"]) for row in logs[1]] == list(range(every, ITERATIONS + 1, every))
        clock = ("images_per_s", "step_s", "data_wait", "memory_mib")
        for lines in logs:
            for row in lines:
                for key in clock:
                    row.pop(key, None)
        assert logs[0] == logs[1]
    names = [sorted(path.name for path in folder.iterdir() if path.name != "wandb") for folder in (one, two)]
    assert names[0] == names[1]
    assert not [name for name in names[1] if name.startswith(".")]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Kill the runs that a failed test has left behind, in each test file that imports this."""
    yield
    while STARTED:
        run = STARTED.pop()
        if run.running:
            run.signal(signal.SIGKILL)
