"""``mode=tune`` and ``mode=compile``, on a stand-in of a GPU and on a CPU."""

import json
import math

import pytest
import torch
from tuning_stand_ins import (  # noqa: F401, fixtures
    CONDITIONS,
    DEVICE,
    Immediately,
    Stopwatch,
    benchmark_config,
    empty_configs,
    sound,
)

from ccnet.benchmarks.tuning import search, table, tune, warm_cache
from ccnet.benchmarks.tuning.candidates import candidates
from ccnet.benchmarks.tuning.table import Range
from ccnet.engine.drawing.tables import read_records
from ccnet.kernels.launches import launch_set, plan, tile_tables


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_a_trial_runs_and_verifies_the_passes(kernel, monkeypatch):
    pytest.importorskip("triton")
    from ccnet.benchmarks.tuning.trial import Trial

    torch.manual_seed(0)
    trial = Trial(kernel, plan.Problem(2, (3, 2), (0, 1), 16, 32, "float32"), torch.device("cpu"), copies=1, repeats=1)
    results = trial.run(0)
    monkeypatch.setattr(trial, "run", lambda i: results)
    assert trial.error() < 1e-5
    results[0][-1, 0, 0, 0] += 1
    assert trial.error() > 0.1
    results[0][-1, 0, 0, 0] -= 1
    results[-1][-1, 0, 0, 0] = float("nan")
    assert math.isnan(trial.error())


def test_tuning_needs_a_gpu(config):
    with pytest.raises(ValueError, match=r"on a GPU, but the device is cpu: tune\.compile_only=sm_90 compiles"):
        tune.tune_kernels(config, torch.device("cpu"))
    with pytest.raises(ValueError, match="the device is cpu"):
        warm_cache.compile_ahead(config, torch.device("cpu"))
    config.tune.compile_only = "sm_70"
    with pytest.raises(ValueError, match=r"tune\.compile_only is 'sm_70': choose one of sm_80, sm_86, sm_89, sm_90"):
        tune.tune_kernels(config, torch.device("cpu"))


def test_dtypes_to_tune_are_checked_before_anything_is_compiled(config):
    config.tune.update({"compile_only": "sm_90", "dtypes": ["float16", "bf16"]})
    with pytest.raises(ValueError, match=r"tune\.dtypes contains bf16: choose some of float16, bfloat16, float32"):
        tune.tune_kernels(config, torch.device("cpu"))


class InProcess(Immediately):
    """Stands in for `Compilers`."""

    def __init__(self, function, processes, seconds):
        super().__init__(sound)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_the_modes_on_a_gpu(tmp_path, config, monkeypatch):
    """The GPU, the compilers and the timer are replaced."""
    from ccnet.benchmarks.tuning import trial
    from ccnet.kernels.torch_ops import devices

    made = []

    def stopwatch(kernel, problem, device, copies, repeats):
        made.append((kernel, problem.dtype, problem.spatial, copies, repeats))
        return Stopwatch(Range(kernel, problem.dtype, 1, 1, problem.spatial[-1], 64), problem)

    monkeypatch.setattr(trial, "Trial", stopwatch)
    monkeypatch.setattr(devices, "device_of", lambda _: DEVICE)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for module in (tune, warm_cache):
        monkeypatch.setattr(module, "Compilers", InProcess)
    monkeypatch.setattr(tune, "provenance", lambda _: CONDITIONS | {"machine": DEVICE.name})
    config.output, config.tune.dtypes = str(tmp_path / "k"), ["bfloat16", "float32"]
    said = tune.tune_kernels(config, torch.device("cuda"))
    assert "forward, bfloat16, lines of 65 to 128" in said and str(tmp_path / "k_tune.csv") in said
    rows = json.loads(tile_tables.table_path(DEVICE.name).read_text())["rows"]
    assert len(rows) == len(made) == 14
    assert ("backward", "bfloat16", (97, 97), 2, 100) in made
    assert tune.tune_kernels(config, torch.device("cuda")).startswith("every range was measured before")
    assert warm_cache.compile_ahead(config, torch.device("cuda")).endswith(" launches compiled")


def test_gradients_in_one_array_are_compiled_ahead_in_bfloat16_only():
    """The tests on a GPU have no others, and a launch in float16 that spills would make the mode fail."""
    cases = warm_cache.wanted(launch_set.GPUS["sm_90"])
    assert {case.pointers["query_ptr"] for case in cases if case.launch.constants.get("JOINED")} == {"bfloat16"}


@pytest.mark.slow
def test_candidates_compile_without_a_gpu(tmp_path, config, monkeypatch):
    monkeypatch.setattr(search, "candidates", lambda *arguments: candidates(*arguments)[:1])
    config.output, config.value_channels, config.query_channels = str(tmp_path / "k"), 64, 16
    config.tune.update({"compile_only": "sm_90", "processes": 1, "dtypes": ["bfloat16"]})
    config.tune.ranges.half = [[1, 64, 16]]
    said = tune.tune_kernels(config, torch.device("cpu"))
    rows = read_records(tmp_path / "k_tune.csv")
    assert {row["kernel"] for row in rows} == {"forward", "backward"}
    assert all(row["outcome"] == "would be timed" and int(row["registers"]) > 16 for row in rows)
    assert {row["machine"] for row in rows} == {"sm_90, compiled only"}
    assert "forward, bfloat16, lines of 1 to 64" in said
    assert not list(tile_tables.CONFIGS.iterdir())


def test_versions_and_kernels_are_conditions_of_a_measurement():
    found = table.measured_with({"torch": "2.11.0", "triton": "3.6.0", "date": "today"})
    assert found.keys() == {"torch", "triton", "kernels"}
