"""The tiles that are tried for a range of line lengths, and the processes that compile them."""

import json
import os
import time

import pytest
from conftest import PATIENCE, ROOT
from tuning_stand_ins import DEVICE, SHORT, benchmark_config, empty_configs  # noqa: F401, fixtures

from ccnet.benchmarks.tuning import examine, tune
from ccnet.benchmarks.tuning.candidates import candidates
from ccnet.benchmarks.tuning.compilers import Compilers
from ccnet.benchmarks.tuning.search import problem_of
from ccnet.kernels.launches import launch_set, plan, tile_tables, tiles


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


def test_a_residual_in_float32_is_compiled_before_a_tile_is_pinned():
    """It needs more shared memory and registers, and stays in float32 where autocast does not cast it."""
    long = SHORT._replace(kernel="forward", dtype="bfloat16", shortest=193, longest=256, length=256)
    every = examine.all_launches(long, problem_of(long, 8, 512), plan.Tile(64, 256, 32, 4, 4), DEVICE)
    assert {case.pointers["residual_ptr"] for case in every} == {None, "bfloat16", "float32"}


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
