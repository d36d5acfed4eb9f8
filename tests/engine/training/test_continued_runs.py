"""The life of a long run: stopped, moved, continued by newer code, extended; each time by the same command line."""

import json
import os
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from conftest import TINY, TINY_CAMVID, at_call

from ccnet.engine import checkpoints
from ccnet.engine.drawing.tables import read_records
from ccnet.engine.runtime.run_folder import FolderLock
from ccnet.engine.training.steps import torch_step
from ccnet.engine.training.steps.torch_step import train_step

pytestmark = pytest.mark.slow

CAMVID = [*TINY_CAMVID, "save_every=1"]


@contextmanager
def stopped_in_step(number):
    """Send SIGTERM to this process during the `number`-th training step in the ``with`` block."""

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_step, "train_step", at_call(number, stop, train_step))
        yield


def test_a_run_is_stopped_moved_continued_by_newer_code_and_extended(camvid_root, tmp_path, run_entry):
    folder = tmp_path / "runs" / "x"
    command = ["train.py", *CAMVID, "resume=auto", f"hydra.run.dir={folder}"]

    with stopped_in_step(2):
        done = run_entry(*command, f"dataset.root={camvid_root.name}", ok=False)  # relative to the current folder
    assert done.returncode == 75 and "stopped after iteration 2" in done.stdout
    saved = checkpoints.load(folder / "last.pt")
    assert saved.config["dataset"]["root"] == str(camvid_root)

    # The job is restarted on another machine, with a copy of the data there, while the old copy is gone.
    scratch = shutil.move(camvid_root, tmp_path / "scratch")
    command.append(f"dataset.root={scratch}")
    with stopped_in_step(1):
        done = run_entry(*command, ok=False)
    assert f"resume=auto: {folder}/last.pt, iteration 2\n" in done.stdout
    assert done.returncode == 75 and "stopped after iteration 3" in done.stdout

    # The code gains options.
    content = torch.load(folder / "last.pt", weights_only=True)
    for part, name in ((content["config"], "clip_norm"), (content["config"]["recipe"], "val_every")):
        del part[name]
    torch.save(content, folder / "last.pt")
    done = run_entry(*[part for part in command if "val_every" not in part], "recipe.max_iters=4")
    assert f"resume=auto: {folder}/last.pt, iteration 3\n" in done.stdout
    assert f"{folder}/last.pt predates some options, which take their defaults: " in done.stdout
    assert "clip_norm=null" in done.stdout and "recipe.val_every=1000" in done.stdout
    assert "not exact" not in done.stdout + done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["iterations"] == 4
    command = [part for part in command if "val_every" not in part]
    done = run_entry(*command)
    assert f"{folder} is already finished" in done.stdout

    done = run_entry(*command, "recipe.max_iters=6")
    assert "recipe.max_iters=6 instead of 4: after iteration 4, the learning rate is that of a run of 6" in done.stdout
    assert json.loads((folder / "result_4.json").read_text()) == result
    assert json.loads((folder / "result.json").read_text())["iterations"] == 6
    assert checkpoints.load(folder / "last.pt").iteration == 6
    log = read_records(folder / "train.csv")
    assert [row["iteration"] for row in log] == ["1", "2", "3", "4", "5", "6"]
    poly = [0.01 * (1 - iteration / 6) ** 0.9 for iteration in (4, 5)]
    assert [float(row["lr"]) for row in log[4:]] == pytest.approx(poly)
    assert [path.name for path in folder.parent.iterdir()] == ["x"]
    assert not list(folder.glob(".*")) and not (folder / "run.lock").exists()


def test_a_named_run_takes_new_locations_and_a_new_length(camvid_root, tmp_path, run_entry):
    folder = tmp_path / "x"
    run_entry("train.py", *CAMVID, f"dataset.root={camvid_root}", "recipe.max_iters=2", f"hydra.run.dir={folder}")
    scratch = shutil.move(camvid_root, tmp_path / "scratch")
    done = run_entry("train.py", f"resume={folder}", f"dataset.root={scratch}")
    assert f"{folder} is already finished: resume={folder} recipe.max_iters=MORE extends it" in done.stdout
    missing = run_entry("train.py", f"resume={folder}", "recipe.max_iters=3", ok=False)
    assert f"error: dataset.root={camvid_root} is not a folder" in missing.stderr
    assert json.loads((folder / "result.json").read_text())["iterations"] == 2  # a run that cannot start loses nothing
    more = (f"dataset.root={scratch}", "recipe.max_iters=3", "recipe.batch_size=4")
    done = run_entry("train.py", f"resume={folder}", *more)
    assert json.loads((folder / "result.json").read_text())["iterations"] == 3
    assert checkpoints.load(folder / "last.pt").config["dataset"]["root"] == str(scratch)
    refused = run_entry("train.py", f"resume={folder}", "dataset.images=/x", "recipe.max_iters=4", ok=False)
    assert "error: dataset.images=/x does not apply to this checkpoint, which uses dataset.root" in refused.stderr


def test_a_stale_result_does_not_end_another_run(tmp_path, run_entry):
    folder = tmp_path / "x"
    command = ["train.py", *TINY, "save_every=1", f"hydra.run.dir={folder}"]
    run_entry(*command)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused = run_entry(*command, "seed=1", ok=False)
    assert f"error: {folder} already holds a run, which a new one would overwrite" in refused.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    # As an earlier version left it: the result of one run beside the checkpoint of another.
    for name in ("last.pt", "previous.pt"):
        (folder / name).unlink()
    (folder / "best.safetensors").unlink()
    (folder / "result.json").rename(tmp_path / "result.json")
    with stopped_in_step(2):
        run_entry(*command, "seed=1", ok=False)
    (tmp_path / "result.json").rename(folder / "result.json")
    done = run_entry(*command, "seed=1", "resume=auto")
    assert "already finished" not in done.stdout and f"resume=auto: {folder}/last.pt, iteration 2" in done.stdout
    assert [row["iteration"] for row in read_records(folder / "train.csv")] == ["1", "2", "3", "4"]


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path, run_entry):
    folder = tmp_path / "sweep"
    command = ["train.py", "-m", *TINY, "recipe.max_iters=1", f"hydra.sweep.dir={folder}"]
    run_entry(*command, "seed=0")
    kept = {path.name: path.read_bytes() for path in (folder / "0").iterdir()}
    refused = run_entry(*command, "seed=1", ok=False)
    assert f"error: {folder} already holds a sweep: add resume=auto" in str(refused.returncode)
    with FolderLock(folder / "0"):
        twice = run_entry(*command, "seed=0", "resume=auto", ok=False)
        assert "0 is in use by process" in twice.stderr
        left = {path.name: path.read_bytes() for path in (folder / "0").iterdir()}
        assert left.pop("run.lock") and left == kept
