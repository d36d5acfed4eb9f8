"""Stand-ins of the tests of tuning: a GPU, its empty folder of tables, compilers and a timer."""

from concurrent.futures import Future

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from ccnet.benchmarks.tuning.examine import Needs
from ccnet.benchmarks.tuning.table import Range
from ccnet.kernels.launches import plan, tile_tables, tiles

DEVICE = plan.Device("NVIDIA Test", (9, 0), 132, 232448)
CONDITIONS = {"torch": "2.11", "triton": "3.6.0", "kernels": "abc"}
SHORT = Range("forward", "bfloat16", 65, 128, 97, 64)
LONG = Range("backward", "bfloat16", 193, 256, 256, 64)


@pytest.fixture(name="config")
def benchmark_config():
    return OmegaConf.load(ROOT / "conf" / "benchmark.yaml")


@pytest.fixture(autouse=True, name="configs")
def empty_configs(tmp_path, monkeypatch):
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
