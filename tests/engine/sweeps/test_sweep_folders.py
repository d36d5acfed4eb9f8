"""The folder of a sweep: one command at a time, and no result is lost when runs or reports fail."""

import errno
import json
import os
import threading
import time

import pytest
import torch.distributed.run
from conftest import PATIENCE, ROOT, TINY, forked
from omegaconf import OmegaConf

from ccnet.engine.runtime.run_folder import FolderLock
from ccnet.engine.sweeps import callback, results
from ccnet.engine.sweeps.report import report

DONE = {"overrides": {"seed": 0}, "mIoU": 50.0, "gflops": 1.0}
FAILING = ["train.py", "-m", "dataset=camvid", "dataset.root=missing", "logger=none", "resume=auto"]


@pytest.mark.slow
def test_a_failed_run_of_an_extended_sweep_keeps_the_result_of_another_run(tmp_path, run_entry):
    """The run fails before it can move past the folder of the first run."""
    results.write_result(tmp_path / "0", DONE)
    for _ in range(2):
        done = run_entry(*FAILING, f"hydra.sweep.dir={tmp_path}", ok=False)
    assert json.loads((tmp_path / "0" / "result.json").read_text()) == DONE
    assert "dataset.root=missing" in json.loads((tmp_path / "0_2" / "result.json").read_text())["error"]
    assert not (tmp_path / "0_3").exists()
    assert "failed    " in done.stdout and "50.00" in done.stdout


def test_a_failure_that_cannot_be_recorded_ends_the_sweep_with_a_single_message(tmp_path, run_entry, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ccnet.engine.sweeps.results.write_json", full)
    done = run_entry(*FAILING, "seed=0,1", f"hydra.sweep.dir={tmp_path}", ok=False)
    assert done.stderr.count("error: the failure of this run cannot be recorded: [Errno 28] No space left") == 1
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_to_ends_the_sweep_with_a_single_message(tmp_path, run_entry):
    """As if the disk were full; Hydra would show a traceback."""
    (tmp_path / "multirun.yaml").mkdir()
    done = run_entry(*FAILING, f"hydra.sweep.dir={tmp_path}", ok=False)
    assert f"error: the output folder {tmp_path} cannot be created or written to (Is a directory)" in str(
        done.returncode
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "0").exists()


@pytest.mark.slow
def test_a_second_sweep_in_the_folder_of_a_running_one_changes_nothing(tmp_path, run_entry):
    with FolderLock(tmp_path):
        before = list(tmp_path.iterdir())
        done = run_entry(*FAILING, f"hydra.sweep.dir={tmp_path}", ok=False)
        assert list(tmp_path.iterdir()) == before
    assert f"{tmp_path} is in use by process {os.getpid()}" in done.returncode
    assert "hydra.sweep.dir=DIR" in done.returncode
    run_entry(*FAILING, f"hydra.sweep.dir={tmp_path}", ok=False)
    assert (tmp_path / "multirun.yaml").exists() and not (tmp_path / "run.lock").exists()


@pytest.mark.parametrize("result", [DONE, {"overrides": {"seed": 0}, "error": "the disk has gone"}])
def test_a_folder_with_results_is_refused_unless_the_sweep_continues_them(tmp_path, result):
    """Else the report would mix the runs of both sweeps, also if those of the first have failed."""
    results.write_result(tmp_path / "3", result)
    config = {"hydra": {"job": {"config_name": "config"}}, "resume": None}
    with pytest.raises(SystemExit, match=r"already holds a sweep: add resume=auto"):
        callback._claim(tmp_path, OmegaConf.create(config))
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    callback._claim(tmp_path, OmegaConf.create(config | {"resume": "auto"}))
    callback._release()
    assert (tmp_path / "multirun.yaml").exists()


def test_an_interval_needs_a_search(tmp_path, run_entry):
    """Hydra's own sweeper would show a traceback."""
    done = run_entry("train.py", "-m", "recipe.lr=interval(0.001,0.1)", "hydra.sweep.dir=sweep", ok=False)
    assert done.returncode.startswith("error: recipe.lr=interval(0.001,0.1) is an interval")
    assert "hydra/sweeper=tpe" in done.returncode
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("interval", ["interval(0.3,0.1)", "tag(log,interval(0,0.3))"])
def test_an_interval_that_a_search_cannot_draw_from_is_named(tmp_path, run_entry, monkeypatch, interval):
    """Optuna itself ends in a traceback."""
    monkeypatch.setattr(callback, "_installed", lambda package: True)
    done = run_entry("train.py", "+sweep=search", f"recipe.lr={interval}", "hydra.sweep.dir=sweep", ok=False)
    assert done.returncode.startswith(f"error: recipe.lr={interval}: set interval(LOW,HIGH) with LOW <= HIGH")
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_whose_report_fails_says_so(tmp_path, run_entry):
    """Hydra shows exceptions of callbacks as warnings, and then exits with code 0."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "result.json").write_text('{"overr')
    done = run_entry(*FAILING, f"hydra.sweep.dir={tmp_path}", ok=False)
    assert f"their report failed: {tmp_path}/7/result.json is damaged" in done.returncode
    assert f"python -m ccnet.engine.sweeps.report {tmp_path}" in done.returncode


@pytest.mark.parametrize("damaged", ['{"overr', "[1]", "{}"])
def test_the_report_names_a_damaged_result(tmp_path, damaged):
    (tmp_path / "result.json").write_text(damaged)
    with pytest.raises(ValueError, match=r"result.json (is damaged|was written)"):
        report(tmp_path)


def test_reports_on_the_same_sweep_wait_for_each_other(tmp_path, monkeypatch):
    """A user may repeat the report while the sweep writes its own."""
    results.write_result(tmp_path / "0", DONE)
    start, drawing, together = threading.Barrier(2), [], []

    def draw(*_):
        drawing.append(None)
        time.sleep(0.1)
        together.append(len(drawing))
        drawing.pop()
        return []

    def reporting():
        start.wait()
        report(tmp_path)

    monkeypatch.setattr("ccnet.engine.sweeps.report._draw", draw)
    threads = [threading.Thread(target=reporting) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1, 1]


def test_a_sweep_that_is_cut_short_says_how_to_continue_it(tmp_path, capsys):
    """Repeated without its folder, the command would start all runs again in a new folder."""
    callback._lock(tmp_path)
    callback._explain_unfinished()
    assert capsys.readouterr().err == ""
    results.write_result(tmp_path / "0", DONE)
    callback._lock(tmp_path)
    callback._explain_unfinished()
    assert f"repeat its command with hydra.sweep.dir={tmp_path} resume=auto" in capsys.readouterr().err
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.slow
def test_two_processes_sweep_together(tmp_path):
    """The second run fails in both processes; the folder that each would name is that of the first process."""
    run_forked = ("--nproc-per-node=2", "--run-path", "--start-method=fork", ROOT / "train.py", "-m")
    options = (*TINY, "recipe.max_iters=1", "recipe.batch_size=2,3,4", "device=cpu")
    printed = tmp_path / "printed"
    launcher = forked(torch.distributed.run.__file__, (*run_forked, *options), output=printed, cwd=tmp_path)
    launcher.join(PATIENCE)
    assert launcher.exitcode == 1 and "process 0: error: " in printed.read_text(), printed.read_text()
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    results = [json.loads((sweep / str(run) / "result.json").read_text()) for run in range(3)]
    assert [result.get("iterations") for result in results] == [1, None, 1]
    assert "2 processes" in results[1]["error"]
