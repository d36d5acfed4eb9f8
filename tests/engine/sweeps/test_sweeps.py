"""Sweeps: the paper's tables, failing runs, parallel runs, hyperparameter search and Slurm jobs."""

import csv
import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from conftest import PATIENCE, ROOT, TINY, children, members
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from ccnet import train as training
from ccnet.data.build import build_dataset
from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.resuming import find_start
from ccnet.engine.runtime.overrides import parse_overrides
from ccnet.engine.sweeps import results
from ccnet.engine.sweeps.report import report
from ccnet.models.criss_cross import CrissCrossAttention
from ccnet.models.factory import build

pytestmark = pytest.mark.slow


ONE_STEP = [*TINY, "recipe.max_iters=1"]


def composed(*overrides, **options):
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides), **options)


def jobs(name):
    """Return the overrides of each run of a sweep in ``conf/sweep``."""
    params = composed(f"+sweep={name}", return_hydra_config=True).hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return BasicSweeper.split_arguments(parsed, None)[0]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def is_picture(path):
    return np.array(Image.open(path)).std() > 10


def test_table_2_sweeps_the_recurrence():
    """Cityscapes selects the category consistent loss by default, but only the last row uses it."""
    seen = []
    for own in jobs("recurrence"):
        config = composed("dataset=cityscapes", "num_classes=19", "backbone=beacons", "model.head.channels=16", *own)
        model = build(config.model)
        attention = any(isinstance(module, CrissCrossAttention) for module in model.modules())
        seen.append((attention, config.model.head.recurrence, "ccl" in config.loss.terms, model.embed is not None))
        assert config.optimizer.algorithm.lr == 0.01
    assert seen == [
        (False, 0, False, False), (True, 1, False, False), (True, 2, False, False), (True, 3, False, False),
        (True, 2, True, True),
    ]  # fmt: skip


def test_table_3_sweeps_the_distance():
    runs = [composed("dataset=cityscapes", *own) for own in jobs("distance")[::5]]
    assert len(jobs("distance")) == 20
    assert [(run.loss.terms.ccl.distance, run.seed) for run in runs] == [
        ("quadratic", 0), ("quadratic", 5), ("piecewise", 0), ("piecewise", 5),
    ]  # fmt: skip
    assert all(run.model.head.recurrence == 2 and run.loss.weights.ccl == 1 for run in runs)


def test_table_4_sweeps_the_context():
    runs = [composed("dataset=cityscapes", *own) for own in jobs("contexts")]
    contexts = [run.model.head.context and run.model.head.context._target_.rpartition(".")[2] for run in runs]
    assert contexts == [
        None, "GlobalConvolution", "PyramidPooling", "AtrousPyramid", "NonLocal", "HorizontalVertical",
        "ParallelHorizontalVertical", *["CrissCrossAttention"] * 4,
    ]  # fmt: skip
    assert ["ccl" in run.loss.terms for run in runs] == [False] * 10 + [True]
    assert len({OmegaConf.to_yaml(OmegaConf.masked_copy(run, ["model", "loss"])) for run in runs}) == 11
    assert len({OmegaConf.to_yaml(OmegaConf.masked_copy(run, ["recipe", "dataset", "optimizer"])) for run in runs}) == 1


def test_the_report_counts_nan_runs_as_failed(tmp_path, capsys):
    for number, own in enumerate(jobs("distance")):
        nan = number in (2, 5, 7)
        result = {"error": "iteration 9: the loss is nan"} if nan else {"mIoU": 70.0 + number % 10, "gflops": 3.0}
        results.write_result(tmp_path / str(number), {"overrides": parse_overrides(own)} | result)
    (tmp_path / "20").mkdir()
    (tmp_path / "20" / "config.yaml").write_text("")
    assert len(report(tmp_path)) == 3
    quadratic, piecewise = rows(tmp_path / "sweep_seeds.csv")
    assert [quadratic["succeeded"], piecewise["succeeded"]] == ["7/10", "10/10"]
    assert float(quadratic["mIoU mean"]) == pytest.approx(70 + (0 + 1 + 3 + 4 + 6 + 8 + 9) / 7)
    assert float(piecewise["mIoU std"]) == pytest.approx(np.std(range(10), ddof=1))
    assert is_picture(tmp_path / "sweep.png")
    said = capsys.readouterr().out
    assert "failed    loss.terms.ccl.distance=quadratic seed=2: iteration 9: the loss is nan" in said
    assert f"started   {tmp_path}/20, not finished" in said


def test_runs_are_named_after_overrides_of_any_type(tmp_path):
    given = [
        [
            "+experiment=contexts/fcn",
            "recipe.lr=0.0123456",
            "recipe.train_transform.crop_size=[65,81]",
            "clip_norm=null",
        ],
        ["+experiment=contexts/fcn", "recipe.lr=1", "recipe.train_transform.crop_size=[65,65]", "clip_norm=null"],
        ["+experiment=contexts/gcn", "recipe.lr=1", "recipe.train_transform.crop_size=[65,65]", "clip_norm=null"],
    ]
    for number, own in enumerate(given):
        results.write_result(tmp_path / str(number), {"overrides": parse_overrides(own), "mIoU": 50.0 + number})
    assert report(tmp_path) == []
    assert [row["run"] for row in rows(tmp_path / "sweep.csv")] == [
        "+experiment=contexts/fcn recipe.lr=0.0123456 recipe.train_transform.crop_size=[65,81]",
        "+experiment=contexts/fcn recipe.lr=1 recipe.train_transform.crop_size=[65,65]",
        "+experiment=contexts/gcn recipe.lr=1 recipe.train_transform.crop_size=[65,65]",
    ]
    assert {path.name for path in tmp_path.glob("sweep*.png")} == {"sweep.png", "sweep_recipe.lr.png"}


def test_an_extended_sweep_is_reported_in_the_same_terms(tmp_path, capsys):
    """A later command adds seeds, resume=auto and another order of its options, and makes a failure good."""
    given = [
        ["model.head.recurrence=1", "seed=0"],
        ["model.head.recurrence=2", "seed=0"],
        ["seed=1", "model.head.recurrence=1", "resume=auto", "num_workers=0"],
        ["seed=1", "model.head.recurrence=2", "resume=auto", "num_workers=0"],
        ["seed=2", "model.head.recurrence=2", "resume=auto", "num_workers=0"],
    ]
    for number, own in enumerate(given):
        results.write_result(tmp_path / str(number), {"overrides": parse_overrides(own), "mIoU": 50.0 + number})
    failed = {"overrides": parse_overrides(["model.head.recurrence=2", "seed=2"]), "error": "the disk has gone"}
    results.write_result(tmp_path / "5", failed)
    assert report(tmp_path) == []
    assert [(row["setting"], row["succeeded"]) for row in rows(tmp_path / "sweep_seeds.csv")] == [
        ("model.head.recurrence=1", "2/2"), ("model.head.recurrence=2", "3/3"),
    ]  # fmt: skip
    assert "the disk has gone" not in capsys.readouterr().out
    assert [row["run"] for row in rows(tmp_path / "sweep.csv")][2] == "model.head.recurrence=1 seed=1"


def test_a_sweep_over_the_seed_alone_has_a_short_name(tmp_path):
    for seed in range(2):
        overrides = parse_overrides(["recipe.max_iters=1", "logger=none", f"seed={seed}"])
        results.write_result(tmp_path / str(seed), {"overrides": overrides, "mIoU": 50.0 + seed, "gflops": 1.0})
    report(tmp_path)
    (row,) = rows(tmp_path / "sweep_seeds.csv")
    assert (row["setting"], float(row["mIoU mean"])) == ("all seeds", 50.5)
    assert Image.open(tmp_path / "sweep.png").width < 1500 and is_picture(tmp_path / "sweep.png")
    overrides["clip_norm"] = 1  # the sweep is extended with an option that the first runs do not set
    results.write_result(tmp_path / "2", {"overrides": overrides, "mIoU": 50.0, "gflops": 1.0})
    report(tmp_path)
    assert [row["setting"] for row in rows(tmp_path / "sweep_seeds.csv")] == ["default", "clip_norm=1"]


def test_an_option_of_the_execution_that_a_sweep_varies_is_reported(tmp_path):
    for number in (0, 2):
        overrides = parse_overrides([f"num_workers={number}", "resume=auto"])
        results.write_result(tmp_path / str(number), {"overrides": overrides, "mIoU": 50.0})
    report(tmp_path)
    assert [row["run"] for row in rows(tmp_path / "sweep.csv")] == ["num_workers=0", "num_workers=2"]


def test_the_report_names_a_result_from_an_earlier_version(tmp_path):
    results.write_result(tmp_path / "0", {"overrides": ["seed=1"], "mIoU": 50.0})
    with pytest.raises(ValueError, match=r"0/result.json was written by an earlier version"):
        report(tmp_path)


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
    table = rows(folder / "sweep.csv")
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
    again = rows(folder / "sweep.csv")
    assert [row for row in again if row["run"] != table[3]["run"]] == table[:3]
    assert 0 <= float(again[3]["mIoU"]) <= 100

    with failing(monkeypatch) as trained:
        run_entry(*command, "accumulate=1")  # the default, which the earlier commands did not name
    assert trained == []
    assert all(json.loads(path.read_text())["overrides"]["accumulate"] == 1 for path in folder.glob("*/result.json"))
    assert rows(folder / "sweep.csv") == again


def test_a_run_of_a_sweep_that_is_resumed_alone_keeps_its_overrides(tmp_path):
    folder = tmp_path / "0"
    training.run(*ONE_STEP, "model.head.recurrence=1", "seed=3", folder=folder)
    before = json.loads((folder / "result.json").read_text())["overrides"]
    training.run(f"resume={folder}", "recipe.max_iters=2", "num_workers=0", folder=tmp_path)
    assert json.loads((folder / "result.json").read_text())["overrides"] == before | {"recipe.max_iters": 2}
    assert before["model.head.recurrence"] == 1


def test_a_parallel_sweep_equals_a_sequential_one(tmp_path, run_entry, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'ccnet-segmentation[joblib]'")
    from joblib.externals.loky import get_reusable_executor

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in (0, 1):
            training.train(composed(*ONE_STEP, f"model.head.recurrence={number}"), tmp_path / "alone" / str(number))
    finally:
        torch.set_num_threads(threads)
    folder = tmp_path / "sweep"
    interrupted = signal.getsignal(signal.SIGINT)
    done = run_entry(
        "train.py", "-m", "hydra/launcher=parallel", *ONE_STEP, "num_workers=1", "model.head.recurrence=0,1,-1",
        f"hydra.sweep.dir={folder}", ok=False,
    )  # fmt: skip
    signal.signal(signal.SIGINT, interrupted)
    get_reusable_executor().shutdown()
    assert "failed    model.head.recurrence=-1: " in done.stdout
    for number in (0, 1):
        one, two = (
            torch.load(run / str(number) / "last.pt", weights_only=True) for run in (tmp_path / "alone", folder)
        )
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
    table = rows(folder / "sweep.csv")
    assert [row["mIoU"] == "failed" for row in table] == [False, True, False]
    best = OmegaConf.load(folder / "optimization_results.yaml")
    assert best.best_value == pytest.approx(max(float(row["best_mIoU"]) for row in table[::2]) / 100)
    assert best.best_params.keys() == {"recipe.lr", "loss.weights.ccl"}
    with failing(monkeypatch) as trained:
        run_entry(*command, "hydra.sweeper.n_trials=4")
    assert trained == [1, 3]
    assert len(rows(folder / "sweep.csv")) == 4
    assert is_picture(folder / "sweep_recipe.lr.png")


def test_an_extended_sweep_overwrites_no_run(tmp_path, monkeypatch):
    training.train(composed(*ONE_STEP), tmp_path / "0")
    with find_start(composed(*ONE_STEP, "resume=auto", "seed=1"), tmp_path / "0") as (found, saved):
        pass
    assert (found, saved) == (tmp_path / "0_2", None)
    with find_start(composed(*ONE_STEP, "resume=auto"), tmp_path / "1") as (found, saved):
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


def test_a_truncated_result_is_ignored(tmp_path):
    saved = Checkpoint({}, {}, [], [], 4, {}, {"identity": "a"})
    results.write_result(tmp_path, {"best_mIoU": 50.0, "iterations": 4, "identity": "a"})
    assert results.finished_score(tmp_path, saved, 4) == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert results.finished_score(tmp_path, saved, 8) is None
    (tmp_path / "result.json").write_text(json.dumps({"overrides": {}})[:5])
    assert results.finished_score(tmp_path, saved, 4) is None
