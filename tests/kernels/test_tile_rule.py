"""The rule that chooses tile sizes, for lines of every length: its properties, which hold for any choice of numbers."""

import itertools
from functools import cache

import pytest

from ccnet.kernels.launches import launch_set, plan, tile_rule, tile_tables, tiles
from ccnet.kernels.launches.problem import has_descriptors

LENGTHS = range(1, 600)
KERNELS = ("forward", "backward")
DTYPES = ("bfloat16", "float16", "float32")


def tile_of(device, kernel, length, dtype="bfloat16", query_channels=64, aligned=False):
    problem = plan.Problem(8, (length, length), (0, 1), query_channels, 512, dtype, aligned=aligned)
    return tiles.choose_tile(kernel, problem, length, device)


@cache
def all_tiles(device):
    """Return the tiles by the arguments of :func:`tile_of`."""
    kinds = itertools.product(KERNELS, LENGTHS, DTYPES, (64, 128), (False, True))
    return {kind: tile_of(device, *kind) for kind in kinds}


@pytest.mark.parametrize("gpu", launch_set.GPUS)
def test_every_tile_is_in_the_launch_set(gpu):
    """Otherwise ``make compile-all`` would not notice that one spills."""
    device = launch_set.GPUS[gpu]
    compiled = {
        (case.kernel, case.launch.constants["D"], case.pointers["value_ptr"] == "float32", case.launch.tile)
        for case in launch_set.cases(gpu)
    }
    chosen = {
        (kernel, query_channels, dtype == "float32", tile)
        for (kernel, _, dtype, query_channels, _), tile in all_tiles(device).items()
    }
    assert chosen - compiled == set()


@pytest.mark.parametrize("gpu", launch_set.GPUS)
def test_triton_accepts_every_tile(gpu):
    """Blocks are powers of two of at least 16, as ``tl.dot`` requires; warps are powers of two as well."""
    for tile in set(all_tiles(launch_set.GPUS[gpu]).values()):
        blocks = tile.block_m, tile.block_n, tile.block_c
        assert all(size >= 16 and size & (size - 1) == 0 for size in blocks) and tile.num_warps in (4, 8), tile
        assert tile.num_stages >= 1


@pytest.mark.parametrize(
    ("gpu", "capability"), [("sm_86", (8, 9)), ("sm_80", (8, 7)), ("sm_100", (10, 3)), ("sm_120", (12, 1))]
)
def test_related_gpus_have_the_same_tiles(gpu, capability):
    """JAX also targets sm_87, sm_103 and sm_121, for which the launch set compiles a related GPU."""
    device = launch_set.GPUS[gpu]
    assert all_tiles(device) == all_tiles(device._replace(capability=capability))


SHORT, MIDDLE = set(range(1, 129)), set(range(161, 257))


@pytest.mark.parametrize(
    ("gpu", "forward", "backward"),
    [
        ("sm_80", SHORT, set(range(1, 65))),
        ("sm_86", SHORT, set(range(1, 65))),
        ("sm_90", SHORT | MIDDLE, SHORT),
        ("sm_100", SHORT | MIDDLE, SHORT),
        ("sm_120", SHORT, set(range(1, 65))),
        ("gfx942", SHORT | MIDDLE, SHORT),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lines_whose_keys_fit_one_tile(gpu, forward, backward, dtype):
    """For D up to 64 in half precision. A line whose keys fit in one tile keeps its attention weights on chip."""
    for kernel, expected in (("forward", forward), ("backward", backward)):
        for aligned in (False, True):
            found = {n for n in LENGTHS if n <= tile_of(launch_set.GPUS[gpu], kernel, n, dtype, 64, aligned).block_n}
            assert found == expected


def test_descriptors_copy_whole_lines():
    """As documented, of 65 to 128 and 161 to 256 pixels; a kernel that loops over keys cannot use them."""
    hopper = launch_set.GPUS["sm_90"]
    used = {n for n in LENGTHS if tile_of(hopper, "forward", n, aligned=True).descriptors}
    assert used == set(range(65, 129)) | MIDDLE
    tile, aligned = plan.Tile(64, 128, 64, 4, 3, True), plan.Problem(8, (97,), (0,), 64, 512, "bfloat16", aligned=True)
    assert {n for n in LENGTHS if has_descriptors(tile, aligned, n, hopper)} == SHORT


@pytest.mark.parametrize("gpu", launch_set.GPUS)
def test_padding_is_limited(gpu):
    """Powers of two from 64 on are not padded, other long lines by at most 10% more than tiles of 64 pad them."""
    for (kernel, length, dtype, query_channels, _), tile in all_tiles(launch_set.GPUS[gpu]).items():
        kind = kernel, length, dtype, query_channels, tile
        if length in (64, 128, 256, 512):
            assert length % tile.block_m == length % tile.block_n == 0, kind
        if length > 256:
            for block in (tile.block_m, tile.block_n):
                assert -(-length // block) * block <= 1.1 * -(-length // 64) * 64, kind


@pytest.mark.parametrize("gpu", [gpu for gpu, device in launch_set.GPUS.items() if not device.arch])
def test_the_backward_pass_prefetches_in_half_precision(gpu):
    """With two stages, the loop over slabs would wait for the copies that it has just issued."""
    for (kernel, _, dtype, *_), tile in all_tiles(launch_set.GPUS[gpu]).items():
        assert kernel == "forward" or dtype == "float32" or tile.num_stages >= 3


def test_hopper_has_the_tiles_that_were_measured():
    """The rule agrees with the H200's table except in one row, whose tile spills with Triton 3.7 or later."""
    device, differing = launch_set.GPUS["sm_90"], []
    for row in tile_tables.load_table("NVIDIA H200"):
        tile = plan.Tile(**row["tile"])
        length = row["measured"]["length"]
        problem = plan.Problem(8, (length, length), (0, 1), 64, 512, row["dtype"], aligned=tile.descriptors)
        if tile_rule.rule_tile(row["kernel"], problem, length, device) != tile:
            differing.append((row["kernel"], row["min_length"]))
    assert differing == [("backward", 65)]
