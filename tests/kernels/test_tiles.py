"""Tile sizes and launches, which are chosen without a compiler or a GPU."""

import pytest

from ccnet.kernels.launches import launch_set, plan, tile_tables, tiles


def test_pinned_rows_of_a_device_take_precedence_over_the_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(tile_tables, "CONFIGS", tmp_path)
    tile = {"block_m": 32, "block_n": 16, "block_c": 32, "num_warps": 2, "num_stages": 1}
    row = {
        "kernel": "forward",
        "dtype": "bfloat16",
        "min_length": 90,
        "max_length": 100,
        "max_query_channels": 64,
    }
    device = plan.Device("NVIDIA Test", (9, 0), 132, 232448)
    assert tile_tables.write_table(device, [row | {"tile": tile}], {"origin": "a test"}).name == "nvidia_test.json"
    problem = plan.Problem(1, (97, 101), (0, 1), 64, 512, "bfloat16")
    assert tiles.choose_tile("forward", problem, 97, device) == plan.Tile(**tile)
    assert tiles.choose_tile("forward", problem, 101, device) != plan.Tile(**tile)
    assert tiles.choose_tile("backward", problem, 97, device) != plan.Tile(**tile)


def test_a_measured_row_is_pinned_for_its_triton_version_only(monkeypatch):
    problem, device = plan.Problem(8, (97, 97), (0, 1), 64, 512, "bfloat16"), launch_set.GPUS["sm_90"]
    shipped, rule = device._replace(name="NVIDIA H200"), device._replace(name="none")
    chosen = {}
    for version in ("3.6.1", "3.60.0", ""):
        monkeypatch.setattr(tile_tables, "triton_version", lambda version=version: version)
        chosen[version] = [tiles.choose_tile("backward", problem, 97, each) for each in (shipped, rule)]
    assert chosen["3.6.1"][0] == plan.Tile(128, 128, 64, 8, 3) != chosen["3.6.1"][1]
    assert chosen["3.60.0"][0] == chosen["3.60.0"][1] == chosen[""][0]


def test_amd_gpus_have_tiles_and_a_precision_of_their_own():
    """gfx942 reports capability 9.4, which is not Hopper's, and Triton refuses tf32x3 for it."""
    problem = plan.Problem(8, (97, 97), (0, 1), 64, 512, "float32")
    amd, nvidia = (plan.forward_launches(problem, launch_set.GPUS[gpu])[0] for gpu in ("gfx942", "sm_90"))
    assert (amd.constants["PRECISION"], nvidia.constants["PRECISION"]) == ("ieee", "tf32x3")
    assert amd.constants["ONE_KEY_TILE"] and not nvidia.constants["ONE_KEY_TILE"]


@pytest.mark.parametrize(("gpu", "overlapping"), [("sm_90", True), ("sm_80", False), ("gfx942", False)])
def test_passes_overlap_on_hopper(gpu, overlapping):
    """The first pass must not start before the kernels ahead of it have ended, since it does not wait for them."""
    problem = plan.Problem(8, (97, 97, 97), (0, 1, 2), 64, 512, "bfloat16")
    for planned in (plan.forward_launches, plan.backward_launches):
        launches = planned(problem, launch_set.GPUS[gpu])
        early = [launch.options.get("launch_pdl", False) for launch in launches]
        waits, signals = ([launch.constants[name] for launch in launches] for name in ("WAITS", "SIGNALS"))
        assert early == waits == [False, overlapping, overlapping]
        assert signals == [overlapping, overlapping, False]
        # Each pass starts with what the previous one has left in the cache.
        assert [launch.constants["REVERSED"] for launch in launches] == [False, True, False]


@pytest.mark.parametrize(("batch", "splits"), [(1, 2), (8, 1)])
def test_a_line_is_split_until_every_processor_has_a_program(batch, splits):
    """A split repeats the scores: 97 lines on 148 processors take two, 776 none."""
    problem = plan.Problem(batch, (97, 97), (0, 1), 64, 512, "bfloat16")
    launches = plan.forward_launches(problem, launch_set.GPUS["sm_100"])
    assert [launch.constants["SPLITS"] for launch in launches] == [splits, splits]


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("length", [129, 257, 513])
def test_no_cliff_above_a_power_of_two(kernel, length):
    """Going one pixel beyond 2^k at most about doubles the products; padding to 2^(k + 1) would quadruple them."""
    problem = plan.Problem(8, (length, length), (0, 1), 64, 512, "bfloat16")

    def padded(length):
        tile = tiles.choose_tile(kernel, problem, length, launch_set.GPUS["sm_90"])
        return -(-length // tile.block_m) * tile.block_m * -(-length // tile.block_n) * tile.block_n

    assert padded(length) <= 2.3 * padded(length - 1)


@pytest.mark.parametrize("gpu", launch_set.GPUS)
def test_loops_over_tiles_only_where_one_is_too_small(gpu):
    for case in launch_set.cases(gpu):
        constants, length = case.launch.constants, case.launch.length
        for name, block in (("ONE_KEY_TILE", "BLOCK_N"), ("ONE_QUERY_TILE", "BLOCK_M")):
            if name in constants:
                assert constants[name] == (constants[block] >= length), case
        slabs = 512 // constants["BLOCK_C"]
        if case.kernel == "forward":  # a loop over keys holds one slab
            assert constants["SPLITS"] in ((1, 2, 4, 8, 16, 32) if constants["ONE_KEY_TILE"] else (slabs,)), case
            assert constants["SPLITS"] <= slabs, case


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 31, 32, 33, 64, 65, 127, 128])
def test_blocks_hold_the_channels_with_little_padding(channels):
    """The kernels load all query channels as one block, and would ignore any beyond it."""
    problem = plan.Problem(8, (97, 97), (0, 1), channels, channels, "bfloat16")
    for planned in (plan.forward_launches, plan.backward_launches):
        for launch in planned(problem, launch_set.GPUS["sm_90"]):
            assert channels <= launch.constants["BLOCK_D"] < max(17, 2 * channels)
            assert 16 <= launch.constants["BLOCK_C"] < max(17, 2 * channels)


@pytest.mark.parametrize(
    ("spatial", "axes", "partial"),
    [
        ((16,), (0,), (False, False, False)),
        ((16, 16), (0,), (False, False, False)),
        ((16, 16), (0, 1), (True, True, False)),
        ((16, 16, 16), (0, 1, 2), (True, True, False)),
        ((128,), (0,), (True, True, False)),
        ((192,), (0,), (True, True, False)),
        ((193,), (0,), (True, True, True)),
        ((128, 128), (0, 1), (True, True, True)),
        ((16, 16, 16, 16), (0, 1, 2, 3), (True, True, True)),
    ],
    ids=str,
)
def test_gradients_are_accumulated_in_float32(monkeypatch, spatial, axes, partial):
    """Except dvalue, the largest, if it has at most three terms. A gradient with one term needs no partial sum."""
    tile = {"block_m": 64, "block_n": 64, "block_c": 64, "num_warps": 4, "num_stages": 3}
    row = {"kernel": "backward", "dtype": "bfloat16", "min_length": 1, "max_length": 999, "max_query_channels": 64}
    monkeypatch.setitem(tile_tables.tables, "NVIDIA Test", [row | {"tile": tile}])
    problem = plan.Problem(1, spatial, axes, 64, 512, "bfloat16")
    launches = plan.backward_launches(problem, plan.Device("NVIDIA Test", (9, 0), 132, 232448))
    assert plan.backward_partials(launches) == partial
    plan.backward_launches.cache_clear()
