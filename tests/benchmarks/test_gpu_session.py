"""The steps of ``make gpu`` are independent: none ends the others, and each is recorded when it ends."""

import time

import pytest
import torch
from conftest import PATIENCE, ROOT, configured, members
from omegaconf import OmegaConf

from ccnet.benchmarks import gpu_session
from ccnet.benchmarks.gpu_session import Step
from ccnet.engine.drawing.tables import read_records
from ccnet.kernels.launches import tile_tables

ABOUT = {"machine": "NVIDIA H100", "torch": "2.11.0", "triton": "3.6.0", "commit": "abc1234", "date": "2026-11-28"}


def python(name, code, seconds=PATIENCE):
    return Step(name, ("-c", code), seconds)


def recorded(folder):
    return {row["step"]: row["status"] for row in read_records(folder / "steps.csv")}


@pytest.fixture
def config(tmp_path):
    config = OmegaConf.load(ROOT / "conf" / "benchmark.yaml")
    config.output = str(tmp_path / "gpu")
    return config


def test_a_failure_or_a_time_limit_ends_one_step_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tile_tables, "CONFIGS", tmp_path / "configs")
    (tmp_path / "configs").mkdir()
    table = tmp_path / "configs" / "nvidia_test.json"
    steps = [
        python("crash", "import os; print('before', flush=True); os._exit(3)"),
        python("hang", "import time; time.sleep(3600)", seconds=0.5),
        python("tune", f"open({str(table)!r}, 'w').write('[]'); raise ValueError('no more')"),
        python("fine", "import ccnet, os; print(os.getcwd(), ccnet.__file__)"),
    ]
    folder = tmp_path / "gpu"
    outcomes = gpu_session.run_steps(steps, folder, PATIENCE, ABOUT)
    assert [outcome.status for outcome in outcomes] == [
        "failed with exit code 3", "stopped after 0 s", "failed with exit code 1", "done",
    ]  # fmt: skip
    assert recorded(folder) == {outcome.step: outcome.status for outcome in outcomes}
    assert (folder / "logs" / "crash.log").read_text() == "before\n"
    assert "no more" in (folder / "logs" / "tune.log").read_text()
    assert (folder / "logs" / "fine.log").read_text().split() == [str(ROOT), str(ROOT / "__init__.py")]
    assert (folder / "nvidia_test.json").read_text() == "[]"
    assert "== fine: done" in capsys.readouterr().out
    # The next run skips what is done, and a named step runs in any case.
    left = ["crash", "hang", "tune"]
    assert [step.name for step in gpu_session.chosen(steps, None, folder, ABOUT)] == left
    assert [step.name for step in gpu_session.chosen(steps, ["fine", "hang"], folder, ABOUT)] == ["hang", "fine"]
    # What another GPU, version or commit has done is measured again, but on another day it is not.
    assert [step.name for step in gpu_session.chosen(steps, None, folder, ABOUT | {"date": "2026-11-29"})] == left
    for name in ("machine", "torch", "triton", "commit"):
        assert gpu_session.chosen(steps, None, folder, ABOUT | {name: "another"}) == steps
    with pytest.raises(ValueError, match=r"gpu\.steps names tests: choose from crash, hang"):
        gpu_session.chosen(steps, ["tests"], folder, ABOUT)
    gpu_session.run_steps([python("hang", "pass")], folder, PATIENCE, ABOUT)
    assert recorded(folder)["hang"] == "done" and len(recorded(folder)) == 4


def test_a_step_leaves_no_process(tmp_path):
    group = tmp_path / "group"
    code = (
        "import os, subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        f"open({str(group)!r}, 'w').write(str(os.getpgrp()))\n"
        "sys.exit(4)"
    )
    (outcome,) = gpu_session.run_steps([python("leaves", code)], tmp_path / "gpu", PATIENCE, ABOUT)
    assert outcome.status == "failed with exit code 4"
    while members(int(group.read_text())):  # killed, but perhaps not gone yet
        time.sleep(0.01)


def test_steps_beyond_the_total_time_are_named(tmp_path):
    outcomes = gpu_session.run_steps([python("first", "pass"), python("second", "pass")], tmp_path / "gpu", 0.5, ABOUT)
    assert [outcome.status for outcome in outcomes] == ["not reached"] * 2


def test_the_exit_code_says_whether_every_step_is_done(config, monkeypatch, capsys):
    both = [python("one", "pass"), python("two", "raise SystemExit(2)")]
    monkeypatch.setattr(gpu_session, "steps", lambda *_, races: both if races else both[:1])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    commits = iter(["abc1234", "abc1234-dirty", "abc1234-dirty"])  # the tuned tiles are written into the repository
    monkeypatch.setattr(gpu_session, "provenance", lambda _: ABOUT | {"commit": next(commits)})
    with pytest.raises(SystemExit) as ended:
        gpu_session.run_session(config, torch.device("cuda"))
    assert ended.value.code == 1
    assert "failed with exit code 2" in capsys.readouterr().out
    config.gpu.steps = ["one"]
    table = gpu_session.run_session(config, torch.device("cuda"))
    assert table.splitlines()[2].split()[:2] == ["one", "done"]
    config.gpu.steps = None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))  # without races, "two" is no step
    assert gpu_session.run_session(config, torch.device("cuda")).startswith("every step is done: delete ")


def test_a_session_needs_a_gpu(config):
    with pytest.raises(ValueError, match="on a GPU, but the device is cpu"):
        gpu_session.run_session(config, torch.device("cpu"))


def test_every_step_is_a_command_that_exists(tmp_path):
    steps = gpu_session.steps(tmp_path)
    order = [step.name.partition("-")[0] for step in steps]
    assert list(dict.fromkeys(order)) == [
        "compile", "tests", "operator", "race", "tune", "tuned", "train", "options", "complexity", "zoo", "jax",
    ]  # fmt: skip
    without = [step for step in steps if not step.name.startswith("race-")]
    assert gpu_session.steps(tmp_path, races=False) == without  # on a GPU that the kernels on trial do not support
    modes = {}
    for step in steps:
        _, module, *overrides = step.arguments
        if module == "pytest":
            assert all((ROOT / word).is_file() for word in overrides if word.endswith(".py"))
            continue
        assert module == "ccnet.benchmark"
        modes[step.name] = configured(*overrides, name="benchmark")
    assert [list(modes[f"operator-{shape}"].shape) for shape in gpu_session.SHAPES] == [
        [8, 97, 97], [8, 128, 256], [1, 97, 97],
    ]  # fmt: skip
    assert 60 * modes["tune"].tune.minutes < next(step.seconds for step in steps if step.name == "tune")
    assert all(str(config.output).startswith(str(tmp_path)) for name, config in modes.items() if name != "compile")
