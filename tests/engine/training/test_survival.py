"""Runs in real processes that are killed or stopped, lose a worker or run out of disk space, and are resumed.

Before each kill, another process tries to join the run.

``KILLS=20 python -m pytest -s tests/engine/training/test_survival.py -k kill_9`` restarts ``python train.py`` after
each of twenty kills and prints when they occurred; ``results/survival.md`` contains such a table.
"""

import csv
import errno
import multiprocessing
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE, ROOT, TINY, children, members

from ccnet.data.loader import Loader
from ccnet.engine import checkpoints, drawing
from ccnet.engine.drawing import ScalarFile
from ccnet.engine.runtime import LAST, PREVIOUS

pytestmark = pytest.mark.slow


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

    def __init__(self, folder, *arguments, command=None, environment=(), hook=None):
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
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(
                [
                    "ccnet.train",
                    "timm",
                    "ccnet.engine.evaluation.tasks.semantic",
                    "ccnet.engine.training.wandb_logger",
                    "ccnet.models.segmentor",
                ]
            )
            self._process = context.Process(target=_train, args=(self.output, folder, arguments, environment, hook))
            self._process.start()
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
        end = time.monotonic() + PATIENCE  # data workers check every five seconds whether their parent is alive
        while members(self.pid):
            assert time.monotonic() < end, f"left behind: {members(self.pid)}"
            time.sleep(0.05)
        return code


def _train(output, folder, arguments, environment, hook):
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= environment
    multiprocessing.set_start_method("fork", force=True)  # data workers must not inherit the server's start method
    os.chdir(folder)
    sys.argv = [str(ROOT / "train.py"), *arguments]
    if hook:
        hook()
    runpy.run_path(sys.argv[0], run_name="__main__")


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
def _nothing_left_behind():
    yield
    while STARTED:
        run = STARTED.pop()
        if run.running:
            run.signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of the uninterrupted run."""
    run = Run(tmp_path_factory.mktemp("whole"))
    assert run.wait() == 0, run.text
    return run.folder / "runs" / "new"


def hold_between_renames():
    """Wait between renaming last.pt to previous.pt and renaming the new file to last.pt."""
    replace, seen = os.replace, []

    def held(source, target):
        replace(source, target)
        seen.append(str(target).endswith(PREVIOUS))
        if sum(seen) == 2:
            os.kill(os.getpid(), signal.SIGSTOP)

    os.replace = held


def refused_beside(run, command):
    """Assert that a second process of the same command line ends with a message and changes nothing."""
    folder = run.folder / "runs" / "new"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    other = Run(run.folder, command=command)
    assert other.wait() == 1
    assert re.search(rf"error: .*{folder} is in use by process {run.pid} on ", other.text), other.text
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in folder.parent.iterdir()] == ["new"]


def test_kill_9_at_any_moment_loses_nothing_before_the_last_checkpoint(whole, tmp_path):
    generator = random.Random(int(os.environ.get("SEED", "0")))
    command = [sys.executable] if KILLS else None
    folder = tmp_path / "runs" / "new"
    moments = ["any"] * (KILLS - 2) + ["writing"] * 2 if KILLS else ["any", "writing", "renaming", "any"]
    if KILLS:
        generator.shuffle(moments)
        print(f"\n| kill | after, s | doing | logged | checkpoint |\n|{'--:|' * 2} --- |{'--:|' * 2}")
    for number, moment in enumerate(moments, 1):
        before, began = newest(folder), time.monotonic()
        run = Run(tmp_path, command=command, hook=hold_between_renames if moment == "renaming" else None)
        if moment == "writing":
            assert run.held_while_writing()
        elif moment == "renaming":
            assert run.until(lambda: (folder / PART).exists() and not (folder / LAST).exists())
            run.hold()
        else:
            if generator.random() < 0.8:  # otherwise kill it during startup
                assert run.until(lambda: "parameters on" in run.text)  # noqa: B023
            enough = run.iteration + generator.randrange(5)
            run.until(lambda: run.iteration >= enough)  # noqa: B023
            time.sleep(generator.uniform(0, 0.3))
            run.hold()
        elapsed, text, logged = time.monotonic() - began, run.text, run.iteration
        if "parameters on" in text:
            refused_beside(run, command)
        parts = [path.name for path in folder.glob(".*")]
        run.signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        saved = newest(folder)
        doing = f"writing {parts[0]}" if parts else "validating" if "validate" in text[-200:] else "training"
        doing = doing if "parameters on" in text else "starting"
        if KILLS:
            print(f"| {number} | {elapsed:.2f} | {doing} | {logged} | {saved.iteration if saved else 'none'} |")
        assert len(parts) <= 1
        assert logged - 1 <= (saved.iteration if saved else 0) <= ITERATIONS
        if before and "parameters on" in text:
            assert re.search(rf"resume=auto: .*(last|previous)\.pt, iteration {before.iteration}\n", text)
    run = Run(tmp_path, command=command)
    assert run.wait() == 0, run.text
    assert_same(whole, folder)


def test_a_request_to_stop_saves_and_exits_with_75_at_any_moment(whole, tmp_path):
    """All processes of the run receive the signal, and wrapper scripts may send it twice."""
    folder = tmp_path / "runs" / "new"
    early = Run(tmp_path, command=[sys.executable])
    time.sleep(1)
    early.signal(signal.SIGTERM)
    assert early.wait() == -signal.SIGTERM
    assert (early.text, newest(folder)) == ("", None)
    stops = [
        lambda run: run.until(lambda: run.iteration >= 2),
        lambda run: run.until(lambda: "validate" in run.text),
        lambda run: run.held_while_writing(),
    ]
    for reach in stops:
        run = Run(tmp_path)
        assert reach(run), run.text
        run.signal(signal.SIGTERM)
        run.signal(signal.SIGCONT)
        time.sleep(0.1)
        run.signal(signal.SIGTERM)
        assert run.wait() == 75, run.text
        assert "Error" not in run.text and "Traceback" not in run.text
        assert newest(folder).iteration >= run.iteration
        assert not (folder / PART).exists()
    run = Run(tmp_path)
    assert run.wait() == 0, run.text
    assert_same(whole, folder)


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        time.sleep(0.05)
        return index


def test_workers_ignore_signals_from_their_first_moment():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    batches = iter(Loader(Slow(), num_workers=2))
    workers = [str(worker.pid) for worker in multiprocessing.active_children()]
    assert len(workers) >= 2
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", *workers], check=True)
    assert [batch.item() for batch in batches] == [0, 1, 2, 3]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_killed_worker_ends_the_run_with_a_single_message(whole, tmp_path):
    run = Run(tmp_path)
    assert run.until(lambda: run.iteration >= 2), run.text
    os.kill(children(run.pid)[0], signal.SIGKILL)
    assert run.wait() == 1
    assert "Traceback" not in run.text
    assert run.text.count("error: a data-loading worker has died") == 1
    assert "reduce num_workers or recipe.batch_size" in run.text and "resume=auto" in run.text
    assert newest(tmp_path / "runs" / "new").iteration >= 1  # a line of the log comes before its checkpoint
    run = Run(tmp_path, "num_workers=0")
    assert run.wait() == 0, run.text
    assert "num_workers: 0" in (tmp_path / "runs" / "new" / "config.yaml").read_text()
    assert_same(whole, tmp_path / "runs" / "new")


@pytest.fixture
def disk(tmp_path):
    """Return a folder on a 32 MiB disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_ends_the_run_with_a_single_message_and_the_run_resumes(whole, disk):
    folder = disk / "runs" / "new"
    run = Run(disk, "logger=wandb")
    assert run.until(lambda: run.iteration >= 2), run.text
    run.hold()
    ballast = disk / "ballast"
    with suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    run.signal(signal.SIGCONT, all=False)
    assert run.wait() == 1
    assert run.text.count("error: ") == 1 and "Traceback" not in run.text
    assert re.search(
        r"error: .*(last\.pt could not be written|No space left on device: .*\.csv).*resume=auto", run.text
    )
    iteration = newest(folder).iteration
    assert iteration >= 1
    assert not list(folder.glob(".*"))
    ballast.unlink()
    run = Run(disk, "num_workers=0")
    assert run.wait() == 0, run.text
    assert re.search(rf"resume=auto: .*, iteration {iteration}\n", run.text)
    assert_same(whole, folder)


def test_a_truncated_row_is_dropped(tmp_path):
    log = ScalarFile(tmp_path / "train.csv", keep_until=0)
    for iteration in (9, 10, 11, 12):
        log.add({"iteration": iteration, "loss": 0.5})
    path = tmp_path / "train.csv"
    path.write_bytes(path.read_bytes()[: -len("2,0.5\r\n")])
    log = ScalarFile(path, keep_until=11)
    assert log.rows == [{"iteration": iteration, "loss": 0.5} for iteration in (9, 10, 11)]
    log.add({"iteration": 12, "loss": 0.5})
    assert [row["iteration"] for row in rows(path)] == ["9", "10", "11", "12"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    def half(self, to, *args, **named):
        Path(to).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def video(path):
        with drawing.open_video(path, fps=5) as made:
            made.add(np.zeros((4, 4, 3), np.uint8))

    monkeypatch.setattr("PIL.Image.Image.save", half)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    path, labels = tmp_path / "made.png", np.zeros((4, 4), np.uint8)
    path.write_bytes(b"before")
    for write in (
        lambda: drawing.save_mask(path, labels, [(0, 0, 0)]),
        lambda: drawing.save_curves(path, [], [], []),
        lambda: video(path.with_suffix(".gif")),
    ):
        with pytest.raises(OSError, match=r"No space left on device: .*made"):
            write()
        assert [path.read_bytes(), list(tmp_path.iterdir())] == [b"before", [path]]


def pair(folder, **named):
    """Start two processes of one run, as ``torchrun`` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Run(folder, "num_workers=0", environment=environment | {"RANK": rank, "LOCAL_RANK": rank}, **named)
        for rank in "01"
    ]


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
    import ccnet.engine.training.steps.torch_step

    step, steps = ccnet.engine.training.steps.torch_step.train_step, []

    def signalled(*arguments, **named):
        steps.append(1)
        if len(steps) == 4 and os.environ["RANK"] in ranks:
            os.kill(os.getpid(), number)
        return step(*arguments, **named)

    ccnet.engine.training.steps.torch_step.train_step = signalled


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
    import ccnet.engine.training.steps.torch_step
    from ccnet.engine.runtime import distributed

    step, steps = ccnet.engine.training.steps.torch_step.train_step, []
    distributed._ROLL_CALL = 1.0

    def stopped(*arguments, **named):
        steps.append(1)
        if len(steps) == 4 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
        if len(steps) == 4:
            torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=wait))
            print("waiting")
        return step(*arguments, **named)

    ccnet.engine.training.steps.torch_step.train_step = stopped


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
