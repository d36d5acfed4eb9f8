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
