"""The search for tiles ends, skips what fails, and writes what it has found so far."""

import json
from concurrent.futures import Future

import pytest
import torch
from tuning_stand_ins import (  # noqa: F401, fixtures
    CONDITIONS,
    DEVICE,
    LONG,
    SHORT,
    Immediately,
    Stopwatch,
    benchmark_config,
    empty_configs,
    sound,
)

from ccnet.benchmarks.tuning.examine import Needs
from ccnet.benchmarks.tuning.log import Log
from ccnet.benchmarks.tuning.search import Search, problem_of
from ccnet.benchmarks.tuning.table import TunedTable
from ccnet.engine.drawing.tables import read_records
from ccnet.kernels.launches import plan, tile_tables, tiles

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


def search_of(tmp_path, answer=sound, trial=Stopwatch, machine="a test", **options):
    log = Log(tmp_path / "tune.csv", {"machine": machine})
    return Search(DEVICE, Immediately(answer), trial, options.pop("seconds", 60), log, **options)


def logged(tmp_path):
    return [(row["length"], row["outcome"]) for row in read_records(tmp_path / "tune.csv")]


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
    with pytest.raises(RuntimeError, match="broke the GPU's context"):  # which says nothing about another GPU
        search_of(tmp_path, trial=trial, machine="another").run([SHORT], 8, 512, TunedTable(DEVICE, CONDITIONS))


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
