"""The lock on the folder of a run keeps other processes out, and any death releases it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import PATIENCE

from ccnet.engine.runtime import replacing, run_folder, write_json, write_text
from ccnet.engine.runtime.run_folder import (
    LOCK,
    FolderLock,
    FolderTaken,
    foreign_files,
    holds_run,
    remove_if_empty,
    with_numbers,
)

# Lock a folder, fork a process that outlives this one, as a data worker does, and wait.
HOLDER = r"""
import os, sys, time
from pathlib import Path
from ccnet.engine.runtime.run_folder import FolderLock
lock = FolderLock(Path(sys.argv[1]))
if not os.fork():
    lock.release()
os.write(1, f"{os.getpid()}\n".encode())
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Return a process that holds the lock on ``tmp_path / "run"``, and the id of its forked process."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    pids = {int(process.stdout.readline()) for _ in range(2)}
    yield process, (pids - {process.pid}).pop()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_second_process_is_refused_until_the_first_has_died(tmp_path, holder):
    process, worker = holder
    folder = tmp_path / "run"
    with pytest.raises(
        FolderTaken, match=rf"in use by process {process.pid} on .*, which started at 20.*hydra.run.dir"
    ):
        FolderLock(folder)
    assert (folder / LOCK).exists()  # neither the forked process nor the refused one has removed it
    process.kill()
    process.wait(PATIENCE)
    os.kill(worker, 0)  # it is alive, but does not hold the lock
    with open(folder / LOCK, "a") as file:
        file.write(" on a machine with a long name")
    with FolderLock(folder):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(FolderTaken):
            FolderLock(folder)
    assert list(folder.iterdir()) == []


def test_a_lock_file_that_its_owner_removes_meanwhile_is_not_mistaken_for_the_lock(tmp_path, monkeypatch):
    first, flock, removed = FolderLock(tmp_path), run_folder.fcntl.flock, []

    def release_first(descriptor, operation):
        if not removed:
            removed.append(first.release())
        flock(descriptor, operation)

    monkeypatch.setattr(run_folder.fcntl, "flock", release_first)
    with FolderLock(tmp_path):
        assert removed and json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_process_on_another_machine_is_given_time_to_be_declared_dead(tmp_path, holder, monkeypatch, capsys):
    process, _ = holder
    path = tmp_path / "run" / LOCK
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if sum(slept) > 60:
            process.kill()
            process.wait(PATIENCE)

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: sum(slept), strftime=time.strftime)
    monkeypatch.setattr(run_folder, "time", clock)
    FolderLock(tmp_path / "run").release()
    assert 60 < sum(slept) < 120
    assert capsys.readouterr().err.count(f"in use by process {process.pid} on elsewhere") == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    FolderLock(tmp_path).release()
    assert f"{tmp_path} cannot be locked ({os.strerror(number)})" in capsys.readouterr().err


def test_an_error_of_the_file_system_is_not_taken_for_a_lack_of_locks(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        FolderLock(tmp_path)


def test_windows_is_reported_as_a_system_without_locks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "fcntl", None)
    FolderLock(tmp_path).release()
    assert f"{tmp_path} cannot be locked (Windows)" in capsys.readouterr().err


def test_a_folder_holds_a_run_if_starting_another_would_lose_something(tmp_path):
    assert not holds_run(tmp_path / "missing")
    for name in ("config.yaml", "train.csv"):
        (tmp_path / name).touch()
    (tmp_path / "result.json").write_text('{"error": "no such class"}')
    assert not holds_run(tmp_path)
    (tmp_path / "result.json").write_text('{"mIoU": 3}')
    assert holds_run(tmp_path)
    (tmp_path / "result.json").unlink()
    (tmp_path / "previous.pt").touch()
    assert holds_run(tmp_path)


def test_only_an_empty_folder_that_is_not_the_user_s_own_is_removed(tmp_path, monkeypatch):
    here, full = tmp_path / "a" / "here", tmp_path / "full"
    for folder in (here, full, tmp_path / "empty"):
        folder.mkdir(parents=True)
    (full / "file").touch()
    monkeypatch.chdir(here)
    for folder in (here, here.parent, full, tmp_path / "empty", tmp_path / "missing"):
        remove_if_empty(folder)
    (here / "run").mkdir()
    remove_if_empty(here / "run")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file", "full", "here"]


def test_files_that_a_run_would_overwrite_are_foreign_unless_a_run_wrote_them(tmp_path):
    assert foreign_files(tmp_path / "missing") == []
    for name in ("curves.png", "train.csv", "photo.png"):
        (tmp_path / name).touch()
    assert foreign_files(tmp_path) == ["train.csv", "curves.png"]
    for text, foreign in (("model: a\n", True), ("model:\n  a: 1\nrecipe:\n  b: 2\n", False), ("\n\0\0", False)):
        (tmp_path / "config.yaml").write_text(text)
        assert foreign_files(tmp_path) == (["config.yaml", "train.csv", "curves.png"] if foreign else [])
    numbered = with_numbers(tmp_path / "run")
    assert [next(numbered).name for _ in range(3)] == ["run", "run_2", "run_3"]


def test_two_processes_of_a_run_may_write_the_same_file_at_once(tmp_path, monkeypatch):
    """Such as the same error, which each records in result.json."""
    path = tmp_path / "result.json"
    with replacing(path) as first:
        first.write_text("0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        write_text(path, "1")
        monkeypatch.setenv("RANK", "0")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("0", [path])


def test_json_files_have_null_for_numbers_that_json_lacks(tmp_path):
    """The score of a class that does not occur is NaN, which other parsers reject."""
    write_json(tmp_path / "a.json", {"class_iou": [0.5, float("nan")], "overrides": {"clip_norm": float("inf")}})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"class_iou": [0.5, None], "overrides": {"clip_norm": None}}
