"""The search for tiles ends, skips what fails, and writes what it has found so far."""

import csv
import json
import os
import time
from concurrent.futures import Future

import pytest
import torch
from conftest import PATIENCE, ROOT
from omegaconf import OmegaConf

from ccnet.benchmarks.tuning import examine, search, table, tune, warm_cache
from ccnet.benchmarks.tuning.candidates import candidates
from ccnet.benchmarks.tuning.compilers import Compilers
from ccnet.benchmarks.tuning.examine import Needs
from ccnet.benchmarks.tuning.log import Log
from ccnet.benchmarks.tuning.search import Search, problem_of
from ccnet.benchmarks.tuning.table import Range, TunedTable
from ccnet.kernels.launches import launch_set, plan, tile_tables, tiles

DEVICE = plan.Device("NVIDIA Test", (9, 0), 132, 232448)
CONDITIONS = {"torch": "2.11", "triton": "3.6.0", "kernels": "abc"}
SHORT = Range("forward", "bfloat16", 65, 128, 97, 64)
LONG = Range("backward", "bfloat16", 193, 256, 256, 64)


@pytest.fixture
def config():
    return OmegaConf.load(ROOT / "conf" / "benchmark.yaml")


@pytest.fixture(autouse=True)
def configs(tmp_path, monkeypatch):
    """Use an empty folder of tables, and the version of Triton in ``CONDITIONS``."""
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.setattr(tile_tables, "CONFIGS", folder)
    monkeypatch.setattr(tile_tables, "triton_version", lambda: CONDITIONS["triton"])
    yield folder
    for name in (DEVICE.name, "H100"):
        tile_tables.tables.pop(name, None)
    plan.forward_launches.cache_clear()
    plan.backward_launches.cache_clear()


# ---- candidates


def listed(config):
    return [
        (each, candidates(each.kernel, problem_of(each, 8, 512), each.length, launch_set.GPUS["sm_90"]))
        for each in tune.ranges(config)
    ]


def test_there_are_some_ten_candidates_for_every_range(config):
    for each, found in listed(config):
        assert 8 <= len(found) <= 16 and len(set(found)) == len(found), each
        problem = problem_of(each, 8, 512)
        assert found[0] == tiles.choose_tile(each.kernel, problem, each.length, launch_set.GPUS["sm_90"])
        assert len({tile.num_stages for tile in found}) > 1, each
    wide = {each.length for each, found in listed(config) if any(tile.block_n == 256 for tile in found)}
    assert wide == {129, 177, 256}


def test_the_rows_of_the_shipped_table_are_ranges_that_are_tuned(config):
    rows = json.loads((ROOT / "kernels" / "configs" / "nvidia_h200.json").read_text())["rows"]
    shipped = {(row["kernel"], row["dtype"], row["min_length"], row["max_length"]) for row in rows}
    assert shipped and shipped <= {each[:4] for each in tune.ranges(config)}


@pytest.mark.parametrize(
    ("gpu", "dtype", "channels", "described"),
    [
        ("sm_90", "bfloat16", 512, True),
        ("sm_90", "bfloat16", 20, False),
        ("sm_90", "float16", 512, False),
        ("sm_80", "bfloat16", 512, False),
    ],
)
def test_tiles_with_descriptors_are_candidates_where_they_work(gpu, dtype, channels, described):
    """Elsewhere, the rule's tile would be timed instead. Training in float16 keeps the output in float32."""
    each = SHORT._replace(dtype=dtype)
    found = candidates("forward", problem_of(each, 8, channels), 97, launch_set.GPUS[gpu])
    assert any(tile.descriptors for tile in found) == described
    for tile in found:  # what is compiled and timed is the candidate
        timed = examine.timed_launches(each, problem_of(each, 8, channels), tile, launch_set.GPUS[gpu])
        assert {case.launch.tile for case in timed} == {tile}


def test_tiles_wider_than_the_value_are_left_out():
    problem = problem_of(SHORT, 8, 32)
    assert {tile.block_c for tile in candidates("forward", problem, 97, DEVICE)} == {32}


@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_a_candidate_is_compiled_as_training_launches_it_and_before_it_is_pinned_in_every_form(kernel):
    asked = SHORT._replace(kernel=kernel), problem_of(SHORT, 8, 512), plan.Tile(64, 32, 16, 4, 2), DEVICE
    timed, every = ([case.launch for case in of(*asked)] for of in (examine.timed_launches, examine.all_launches))
    for launch in (*timed, *every):
        assert (launch.length, launch.tile.num_warps, launch.constants["BLOCK_M"]) == (97, 4, 64)
    fused = "HAS_RESIDUAL" if kernel == "forward" else "HAS_GAMMA"
    assert [launch.inner for launch in timed] == [97, 1]
    assert timed[-1].constants[fused]
    assert {launch.constants[fused] for launch in every} == {True, False}
    first = "HAS_PREVIOUS" if kernel == "forward" else "FIRST"
    passes = {(launch.constants[first], launch.constants["MASK_SELF"]) for launch in every}
    assert len(passes) == 4  # the only one, the first, the last, one between
    assert tile_tables.load_table(DEVICE.name) == []


# ---- processes


def test_a_compiler_that_fails_costs_only_its_own_job():
    with Compilers(time.sleep, 2, PATIENCE) as compilers:
        jobs = [compilers.submit(argument) for argument in (0, "no number", 0)]
        assert [job.result() for job in jobs][::2] == [None, None]
        assert jobs[1].result().startswith("TypeError: ")


def test_a_compiler_that_crashes_or_hangs_is_replaced():
    with Compilers(os._exit, 1, PATIENCE) as compilers:
        assert [compilers.submit(code).result() for code in (3, 4)] == [
            "ended its process with exit code 3",
            "ended its process with exit code 4",
        ]
    with Compilers(time.sleep, 1, 0.1) as compilers:
        assert [compilers.submit(3600).result() for _ in range(2)] == ["took longer than 0 s"] * 2


# ---- the table


def test_a_measured_row_is_written_at_once_and_keeps_the_others():
    rule = SHORT._replace(dtype="float32").row(plan.Tile(64, 32, 64, 4, 2)) | {"median_us": None}
    old = SHORT.row(plan.Tile(128, 128, 64, 8, 2)) | {"median_us": None}
    tile_tables.write_table(DEVICE, [old, rule], {"origin": "a test"})
    tuned = TunedTable(DEVICE, CONDITIONS)
    assert not tuned.has(SHORT)
    path = tuned.pin(SHORT, (plan.Tile(128, 128, 32, 8, 4), 101.23))
    written = json.loads(path.read_text())
    assert [row["median_us"] for row in written["rows"]] == [101.2, None]
    assert written["rows"][1] == rule
    assert written["rows"][0]["measured"].items() >= (CONDITIONS | {"length": 97}).items()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert tiles.choose_tile("forward", problem_of(SHORT, 8, 512), 100, DEVICE).num_stages == 4
    # Another process continues after this row, unless something that it depends on has changed.
    tile_tables.tables.clear()
    assert TunedTable(DEVICE, CONDITIONS).has(SHORT)
    assert not TunedTable(DEVICE, CONDITIONS).has(LONG)
    assert not TunedTable(DEVICE, CONDITIONS | {"kernels": "def"}).has(SHORT)
    assert not TunedTable(DEVICE, CONDITIONS).has(SHORT._replace(length=128))


def test_a_tile_without_descriptors_follows_one_with_them():
    tuned = TunedTable(DEVICE, CONDITIONS)
    tuned.pin(SHORT, (plan.Tile(64, 128, 64, 4, 3), 149.0))
    described, plain = plan.Tile(64, 128, 32, 4, 4, descriptors=True), plan.Tile(64, 128, 32, 4, 5)
    tuned.pin(SHORT, (described, 122.0), (plain, 140.0))
    hopper = DEVICE._replace(descriptors=True)
    chosen = [tiles.choose_tile("forward", problem_of(SHORT, 8, 512), 97, device) for device in (hopper, DEVICE)]
    assert chosen == [described, plain] and len(tuned.rows) == 2


def test_a_row_precedes_those_that_it_covers_in_part():
    tuned = TunedTable(DEVICE, CONDITIONS)
    tuned.pin(SHORT, (plan.Tile(128, 128, 32, 8, 3), 100.0))
    tuned.pin(SHORT._replace(shortest=97, longest=97), (plan.Tile(128, 128, 16, 8, 4), 90.0))
    block_c = [tiles.choose_tile("forward", problem_of(SHORT, 8, 512), length, DEVICE).block_c for length in (96, 97)]
    assert block_c == [32, 16]


# ---- the search


class Immediately:
    """Compilers that answer at once; ``answer(tile, timed)`` returns Needs or the reason of a failure."""

    def __init__(self, answer):
        self.answer, self.jobs = answer, []

    def submit(self, job):
        self.jobs.append(job)
        future = Future()
        future.set_result(self.answer(job.launches[0].launch.tile, len(job.launches) > 1))
        return future


class Stopwatch:
    """A trial whose times follow from the pinned tile."""

    device = DEVICE

    def __init__(self, each, problem, times=lambda tile: tile.block_c + tile.num_stages, error=lambda tile: 0.0):
        self.each, self.problem, self.times, self.wrong, self.usable = each, problem, times, error, True

    def tile(self):
        return tiles.choose_tile(self.each.kernel, self.problem, self.each.length, self.device)

    def error(self):
        return self.wrong(self.tile())

    def median_us(self):
        return self.times(self.tile())

    def is_usable(self):
        return self.usable


def sound(tile, timed):
    return Needs(100, 0, 65536, None)


def search_of(tmp_path, answer=sound, trial=Stopwatch, **options):
    log = Log(tmp_path / "tune.csv", {"machine": "a test"})
    return Search(DEVICE, Immediately(answer), trial, options.pop("seconds", 60), log, **options)


def logged(tmp_path):
    with open(tmp_path / "tune.csv", newline="") as file:
        return [(row["length"], row["outcome"]) for row in csv.DictReader(file)]


def test_the_fastest_sound_tile_is_pinned(tmp_path):
    def answer(tile, timed):
        if tile.block_m == 128 and tile.block_c == 64:
            return "PassManager::run failed"
        if tile.num_stages == 2:
            return Needs(255, 8, 65536, "8 bytes of registers spilled")
        if tile.block_m == 64 and not timed:
            return Needs(255, 16, 65536, "16 bytes of registers spilled")
        return sound(tile, timed)

    def trial(each, problem):
        return Stopwatch(each, problem, times=lambda tile: tile.block_m + tile.num_stages)

    tuned = TunedTable(DEVICE, CONDITIONS)
    (record,) = search_of(tmp_path, answer, trial).run([SHORT], 8, 512, tuned)
    # 64 queries are faster, but with them another kind of call spills.
    assert record["tile"] == "128x128x32, 8 warps, 3 stages" and record["median_us"] == "131.0"
    assert record["before_us"] == "67.0"
    outcomes = [outcome for _, outcome in logged(tmp_path)]
    assert "skipped: PassManager::run failed" in outcomes
    assert "skipped: 8 bytes of registers spilled" in outcomes
    assert "not pinned, because of another kind of call: 16 bytes of registers spilled" in outcomes
    assert "131.0 us" in outcomes


def test_the_fastest_tile_without_descriptors_is_pinned_beside_one_with_them(tmp_path):
    class Hopper(Stopwatch):
        device = DEVICE._replace(descriptors=True)

    def trial(each, problem):
        return Hopper(each, problem, times=lambda tile: tile.block_c + tile.num_stages - 20 * tile.descriptors)

    tuned = TunedTable(Hopper.device, CONDITIONS)
    search = Search(Hopper.device, Immediately(sound), trial, 60, Log(tmp_path / "tune.csv", {"machine": "a test"}))
    (record,) = search.run([SHORT], 8, 512, tuned)
    assert record["tile"] == "64x128x32, 4 warps, 4 stages, descriptors" and record["median_us"] == "16.0"
    assert [(row["tile"]["descriptors"], row["median_us"]) for row in tuned.rows] == [(True, 16.0), (False, 35.0)]


def test_a_wrong_or_failing_tile_is_skipped_and_named(tmp_path):
    def times(tile):
        if tile.block_m == 64:
            raise RuntimeError("out of resources\nand more")
        return 7.0

    def trial(each, problem):
        return Stopwatch(each, problem, times, error=lambda tile: 0.5 if tile.num_stages == 5 else 1e-3)

    tuned = TunedTable(DEVICE, CONDITIONS)
    (record,) = search_of(tmp_path, trial=trial).run([SHORT], 8, 512, tuned)
    assert record["median_us"] == "7.0"
    outcomes = [outcome for _, outcome in logged(tmp_path)]
    assert "skipped: RuntimeError: out of resources" in outcomes
    assert "skipped: ValueError: the error is 5.0e-01 of the largest element, above the tolerance" in outcomes


def test_a_range_that_fails_does_not_affect_the_others(tmp_path):
    def trial(each, problem):
        if each == SHORT:
            raise torch.OutOfMemoryError("out of memory")
        return Stopwatch(each, problem, error=lambda tile: 1.0 if each.shortest == 1 else 0.0)

    tuned = TunedTable(DEVICE, CONDITIONS)
    searching = search_of(tmp_path, trial=trial)
    wrong = LONG._replace(shortest=1, longest=64, length=64)
    records = searching.run([SHORT, wrong, LONG], 8, 512, tuned)
    assert [record["tile"] for record in records[:2]] == ["none is sound"] * 2 and records[2]["median_us"]
    assert searching.failures == [
        f"{SHORT}: not measured. OutOfMemoryError: out of memory",
        f"{SHORT}: no candidate is sound",
        f"{wrong}: no candidate is sound",
    ]
    assert tuned.has(LONG) and not tuned.has(wrong)


def test_at_the_time_limit_the_table_holds_what_was_found(tmp_path):
    now = [0.0]

    def trial(each, problem):
        now[0] += 40
        return Stopwatch(each, problem)

    tuned = TunedTable(DEVICE, CONDITIONS)
    with pytest.raises(TimeoutError, match="the time limit is reached"):
        search_of(tmp_path, trial=trial, clock=lambda: now[0]).run([SHORT, LONG], 8, 512, tuned)
    assert tuned.has(SHORT) and not tuned.has(LONG)
    assert json.loads(tile_tables.table_path(DEVICE.name).read_text())["rows"][0]["median_us"] > 0


def test_a_compiler_that_does_not_answer_ends_at_the_time_limit(tmp_path):
    searching = search_of(tmp_path, seconds=0.1)
    searching.compilers.submit = lambda job: Future()
    with pytest.raises(TimeoutError, match="the time limit is reached"):
        searching.run([SHORT], 8, 512, TunedTable(DEVICE, CONDITIONS))


def test_a_tile_that_breaks_the_gpu_is_skipped_by_the_next_run(tmp_path):
    def trial(each, problem):
        def times(tile):
            if tile.num_stages == 4:
                watch.usable = False
                raise RuntimeError("an illegal memory access was encountered")
            return 5.0

        watch = Stopwatch(each, problem, times)
        return watch

    tuned = TunedTable(DEVICE, CONDITIONS)
    ended = []
    for _ in range(9):
        try:
            search_of(tmp_path, trial=trial).run([SHORT], 8, 512, tuned)
            break
        except RuntimeError as error:
            ended.append(str(error))
    assert ended and all("broke the GPU's context: RuntimeError: an illegal memory access" in line for line in ended)
    assert len(set(ended)) == len(ended)
    assert tuned.has(SHORT)


def test_the_next_range_is_compiled_while_one_is_timed(tmp_path):
    seen = []

    def trial(each, problem):
        seen.append((each, {job.launches[0].launch.length for job in searching.compilers.jobs}))
        return Stopwatch(each, problem)

    searching = search_of(tmp_path, trial=trial)
    searching.run(
        [SHORT, LONG, SHORT._replace(shortest=1, longest=64, length=64)], 8, 512, TunedTable(DEVICE, CONDITIONS)
    )
    assert [lengths for _, lengths in seen] == [{97, 256}, {97, 256, 64}, {97, 256, 64}]


# ---- on the CPU, in Triton's interpreter


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


# ---- the mode


def test_tuning_needs_a_gpu(config):
    with pytest.raises(ValueError, match=r"on a GPU, but the device is cpu: tune\.compile_only=sm_90 compiles"):
        tune.tune_kernels(config, torch.device("cpu"))
    with pytest.raises(ValueError, match="the device is cpu"):
        warm_cache.compile_ahead(config, torch.device("cpu"))
    config.tune.compile_only = "sm_70"
    with pytest.raises(ValueError, match=r"tune\.compile_only is 'sm_70': choose one of sm_80, sm_90, sm_100"):
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


@pytest.mark.slow
def test_candidates_compile_without_a_gpu(tmp_path, config, monkeypatch):
    monkeypatch.setattr(search, "candidates", lambda *arguments: candidates(*arguments)[:1])
    config.output, config.value_channels, config.query_channels = str(tmp_path / "k"), 64, 16
    config.tune.update({"compile_only": "sm_90", "processes": 1, "dtypes": ["bfloat16"]})
    config.tune.ranges.half = [[1, 64, 16]]
    said = tune.tune_kernels(config, torch.device("cpu"))
    with open(tmp_path / "k_tune.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kernel"] for row in rows} == {"forward", "backward"}
    assert all(row["outcome"] == "would be timed" and int(row["registers"]) > 16 for row in rows)
    assert {row["machine"] for row in rows} == {"sm_90, compiled only"}
    assert "forward, bfloat16, lines of 1 to 64" in said
    assert not list(tile_tables.CONFIGS.iterdir())


def test_versions_and_kernels_are_conditions_of_a_measurement():
    found = table.measured_with({"torch": "2.11.0", "triton": "3.6.0", "date": "today"})
    assert found.keys() == {"torch", "triton", "kernels"}
