"""Sweeps of training runs: failing runs, parallel runs, hyperparameter search and Slurm jobs."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest
import torch
from conftest import PATIENCE, ROOT, TINY, children, composed, members
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from sweep_results import is_picture

from ccnet import train as training
from ccnet.data.build import build_dataset
from ccnet.engine import checkpoints
from ccnet.engine.drawing.tables import read_records
from ccnet.engine.resuming import find_start

pytestmark = pytest.mark.slow

ONE_STEP = [*TINY, "recipe.max_iters=1"]


@contextmanager
def failing(monkeypatch, *numbers):
    """Make the runs with the given numbers fail; yield the list of numbers of all runs that train."""
    trained = []

    def flaky(config, split, transform):
        if split == "train":
            number = int(HydraConfig.get().job.num)
            trained.append(number)
            if number in numbers:
                raise RuntimeError("the disk has gone")
        return build_dataset(config, split, transform)

    with monkeypatch.context() as patched:
        patched.setattr("ccnet.data.build_dataset", flaky)
        yield trained


def test_resume_auto_repeats_only_the_failed_run_of_a_sweep(tmp_path, run_entry, monkeypatch):
    folder = tmp_path / "sweep"
    command = [
        "train.py", "-m", *ONE_STEP, "model.head.recurrence=0,1", "loss=ce_ccl", "loss.weights.ccl=0,0.1",
        "resume=auto", f"hydra.sweep.dir={folder}",
    ]  # fmt: skip
    with failing(monkeypatch, 3) as trained:
        done = run_entry(*command, ok=False)
    assert trained == [0, 1, 2, 3]
    overrides = json.loads((folder / "3" / "result.json").read_text())["overrides"]
    assert (overrides["model.head.recurrence"], overrides["loss.weights.ccl"], overrides["resume"]) == (1, 0.1, "auto")
    assert "failed    model.head.recurrence=1 loss.weights.ccl=0.1: RuntimeError: the disk has gone" in done.stdout
    table = read_records(folder / "sweep.csv")
    assert [row["run"] for row in table] == [
        f"model.head.recurrence={r} loss.weights.ccl={weight}" for r in (0, 1) for weight in ("0", "0.1")
    ]
    assert [row["mIoU"] == "failed" for row in table] == [False] * 3 + [True]
    assert "| model.head.recurrence=1 loss.weights.ccl=0.1 | failed |" in (folder / "sweep.md").read_text()
    names = ("sweep.png", "sweep_cost.png", "sweep_model.head.recurrence.png", "sweep_loss.weights.ccl.png")
    assert all(is_picture(folder / name) for name in names)
    weights = torch.load(folder / "0" / "last.pt", weights_only=True)["config"]["loss"]["weights"]
    assert weights == {"main": 1.0, "aux": 0.4, "ccl": 0}

    with failing(monkeypatch) as trained:
        done = run_entry(*command)
    assert trained == [3]
    assert "failed" not in done.stdout
    again = read_records(folder / "sweep.csv")
    assert [row for row in again if row["run"] != table[3]["run"]] == table[:3]
    assert 0 <= float(again[3]["mIoU"]) <= 100

    with failing(monkeypatch) as trained:
        run_entry(*command, "accumulate=1")  # the default, which the earlier commands did not name
    assert trained == []
    assert all(json.loads(path.read_text())["overrides"]["accumulate"] == 1 for path in folder.glob("*/result.json"))
    assert read_records(folder / "sweep.csv") == again


def test_a_run_of_a_sweep_that_is_resumed_alone_keeps_its_overrides(tmp_path):
    folder = tmp_path / "0"
    training.run(*ONE_STEP, "model.head.recurrence=1", "seed=3", folder=folder)
    before = json.loads((folder / "result.json").read_text())["overrides"]
    training.run(f"resume={folder}", "recipe.max_iters=2", "num_workers=0", folder=folder)
    assert json.loads((folder / "result.json").read_text())["overrides"] == before | {"recipe.max_iters": 2}
    assert before["model.head.recurrence"] == 1


def test_a_parallel_sweep_equals_a_sequential_one(tmp_path, run_entry, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'ccnet-segmentation[joblib]'")
    from joblib.externals.loky import get_reusable_executor

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        training.train(composed("recipe.max_iters=1", "model.head.recurrence=1"), tmp_path / "alone")
    finally:
        torch.set_num_threads(threads)
    folder = tmp_path / "sweep"
    interrupted = signal.getsignal(signal.SIGINT)
    done = run_entry(
        "train.py", "-m", "hydra/launcher=parallel", *ONE_STEP, "model.head.recurrence=1,-1",
        f"hydra.sweep.dir={folder}", ok=False,
    )  # fmt: skip
    signal.signal(signal.SIGINT, interrupted)
    get_reusable_executor().shutdown()
    assert "failed    model.head.recurrence=-1: " in done.stdout
    one, two = (torch.load(run / "last.pt", weights_only=True) for run in (tmp_path / "alone", folder / "0"))
    assert all(torch.equal(values, two["weights"][name]) for name, values in one["weights"].items())
    assert repr(one["scores"]) == repr(two["scores"])


def test_a_parallel_sweep_survives_a_killed_run_and_saves_when_interrupted(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'ccnet-segmentation[joblib]'")
    folder, out = tmp_path / "sweep", tmp_path / "out"
    endless = ["recipe.max_iters=100000", "recipe.val_every=100000", "model.head.recurrence=0,1,2,3"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
    with open(out, "w") as written:
        launcher = subprocess.Popen(
            [sys.executable, ROOT / "train.py", "-m", "hydra/launcher=parallel", *TINY, *endless, "num_workers=1",
             f"hydra.sweep.dir={folder}"],
            cwd=tmp_path, stdout=written, stderr=written, env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    end = time.monotonic() + PATIENCE

    def wait(condition):
        while not condition():
            assert time.monotonic() < end, out.read_text()[-3000:]
            time.sleep(0.05)

    def under_way():
        return {number for number in "0123" if (folder / number / "train.csv").exists()}

    try:
        wait(lambda: under_way() == {"0", "1"})
        run = next(run for worker in children(launcher.pid) for run in children(worker))
        os.kill(run, signal.SIGKILL)
        wait(lambda: under_way() == {"0", "1", "2"})
        os.kill(launcher.pid, signal.SIGINT)  # only the launcher
        assert launcher.wait(PATIENCE) == -signal.SIGINT
        assert f"repeat its command with hydra.sweep.dir={folder} resume=auto\n" in out.read_text()
        wait(lambda: not members(launcher.pid))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    (lost,) = {path.parent.name for path in folder.glob("*/result.json")}
    assert "killed by SIGKILL" in json.loads((folder / lost / "result.json").read_text())["error"]
    assert all(checkpoints.load(folder / number / "last.pt").iteration >= 1 for number in under_way() - {lost})
    assert under_way() == {"0", "1", "2"}


def test_a_search_survives_a_failed_trial_and_resumes(tmp_path, run_entry, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install 'ccnet-segmentation[optuna]'")
    folder = tmp_path / "search"
    command = ["train.py", "+sweep=search", *ONE_STEP, "resume=auto", f"hydra.sweep.dir={folder}"]
    with failing(monkeypatch, 1) as trained:
        run_entry(*command, "hydra.sweeper.n_trials=3", ok=False)
    assert trained == [0, 1, 2]
    table = read_records(folder / "sweep.csv")
    assert [row["mIoU"] == "failed" for row in table] == [False, True, False]
    best = OmegaConf.load(folder / "optimization_results.yaml")
    assert best.best_value == pytest.approx(max(float(row["best_mIoU"]) for row in table[::2]) / 100)
    assert best.best_params.keys() == {"recipe.lr", "loss.weights.ccl"}
    with failing(monkeypatch) as trained:
        run_entry(*command, "hydra.sweeper.n_trials=4")
    assert trained == [1, 3]
    assert len(read_records(folder / "sweep.csv")) == 4
    assert is_picture(folder / "sweep_recipe.lr.png")


def test_an_extended_sweep_overwrites_no_run(tmp_path, monkeypatch):
    training.train(composed("recipe.max_iters=1"), tmp_path / "0")
    with find_start(composed("recipe.max_iters=1", "resume=auto", "seed=1"), tmp_path / "0") as (found, saved):
        pass
    assert (found, saved) == (tmp_path / "0_2", None)
    with find_start(composed("recipe.max_iters=1", "resume=auto"), tmp_path / "1") as (found, saved):
        pass
    assert (found, saved.iteration) == (tmp_path / "0", 1)


@pytest.mark.parametrize(
    ("choice", "extra"),
    [("hydra/launcher=parallel", "joblib"), ("hydra/launcher=slurm", "slurm"), ("+sweep=search", "optuna")],
)
def test_an_error_names_a_missing_plugin(run_entry, monkeypatch, choice, extra):
    monkeypatch.setattr("ccnet.engine.sweeps.callback._installed", lambda package: False)
    done = run_entry("train.py", "-m", choice, *ONE_STEP, "seed=0,1", ok=False)
    assert f"pip install 'ccnet-segmentation[{extra}]'" in str(done.returncode)


def test_a_machine_without_slurm_is_refused(run_entry, tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'ccnet-segmentation[slurm]'")
    monkeypatch.setattr("shutil.which", lambda name: None)
    done = run_entry("train.py", "-m", "hydra/launcher=slurm", *ONE_STEP, "hydra.sweep.dir=sweep", ok=False)
    assert "error: hydra/launcher=slurm needs the commands of Slurm, and srun is not on" in str(done.returncode)
    assert not (tmp_path / "sweep").exists()


def test_a_slurm_job_requests_a_signal_before_its_end(tmp_path, run_entry, monkeypatch):
    """Everything runs up to sbatch, which is replaced by a script that fails."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'ccnet-segmentation[slurm]'")
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    folder = tmp_path / "sweep"
    run_entry("train.py", "-m", "hydra/launcher=slurm", "seed=0,1,2", f"hydra.sweep.dir={folder}", ok=False)
    (script,) = folder.rglob("*.sh")
    asked = {line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if "SBATCH" in line}
    assert {"signal=USR2@120", "time=1440", "gpus-per-node=1", "array=0-2%3", "mem=32GB"} <= asked
