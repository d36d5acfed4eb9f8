"""Runs in real processes that are killed or stopped, lose a worker or run out of disk space, and are resumed.

Before each kill, another process tries to join the run.

``KILLS=20 python -m pytest -s tests/engine/training/test_survival.py -k kill_9`` restarts ``python train.py`` after
each of twenty kills and prints when they occurred; ``results/survival.md`` contains such a table.
"""

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import children
from interrupted_runs import (  # noqa: F401, fixture
    ITERATIONS,
    KILLS,
    PART,
    Run,
    assert_same,
    newest,
    nothing_left_behind,
)

from ccnet.data.loader import Loader
from ccnet.engine.runtime import LAST, PREVIOUS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of the uninterrupted run."""
    run = Run(tmp_path_factory.mktemp("whole"), pictures=True)
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
        hook = hold_between_renames if moment == "renaming" else None
        run = Run(tmp_path, command=command, hook=hook, pictures=True)  # a kill may hit their files, too
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
        doing = f"writing {parts[0]}" if parts else "training or validating"
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
    libraries = Path(f"/proc/{early.pid}/maps")
    assert early.until(lambda: "libtorch" in libraries.read_text())  # it is still importing
    early.signal(signal.SIGTERM)
    assert early.wait() == -signal.SIGTERM
    assert (early.text, newest(folder)) == ("", None)
    stops = [
        lambda run: run.until(lambda: run.iteration >= 2),
        lambda run: run.until(lambda: run.iteration >= 5),  # and begins to validate
        lambda run: run.held_while_writing(),
    ]
    for reach in stops:
        run = Run(tmp_path, pictures=True)
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
    batches = iter(Loader(Slow(), num_workers=1))
    workers = [str(worker.pid) for worker in multiprocessing.active_children()]
    assert workers
    for name in ("TERM", "INT", "HUP"):
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
    run = Run(disk, "logger=wandb", pictures=True)
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
    run = Run(disk, "num_workers=0", pictures=True)
    assert run.wait() == 0, run.text
    assert re.search(rf"resume=auto: .*, iteration {iteration}\n", run.text)
    assert_same(whole, folder)
