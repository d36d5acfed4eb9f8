"""Kernels on trial are verified before they are timed, in turns with those in use."""

import pytest
import torch
from conftest import ROOT, configured

from ccnet.benchmarks.timing import Timing
from ccnet.benchmarks.variants import race
from ccnet.benchmarks.variants.race import Variant, race_variants
from ccnet.engine.drawing.tables import read_records

passes = pytest.importorskip("ccnet.benchmarks.variants.passes", reason="Triton has no Gluon")


@pytest.fixture
def config(tmp_path):
    return configured("mode=race", f"output={tmp_path}/kernels", name="benchmark")


def test_needs_a_hopper_gpu(config):
    with pytest.raises(ValueError, match=r"needs a Hopper GPU .* but the device is .*, \d+ thread"):
        race_variants(config, torch.device("cpu"))


def test_unknown_variants_are_refused(config):
    config.race.variants = ["persistent-backward", "faster"]
    with pytest.raises(ValueError, match=r"race\.variants names faster: choose from persistent-forward"):
        race_variants(config, torch.device("cpu"))


class StandIn:
    """A trial whose passes return a constant."""

    def __init__(self, kernel, problem, device, copies, repeats, fused):
        self.shape = problem.batch, *problem.spatial
        self.forward = self.backward = lambda: torch.ones(3)

    def run(self, i):
        return [self.backward()]

    def error(self):
        return (self.run(0)[0] - 1).abs().max().item()


def test_every_variant_is_verified_and_recorded(config, monkeypatch, tmp_path):
    monkeypatch.setattr("ccnet.benchmarks.tuning.trial.Trial", StandIn)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    calls = iter(range(1000))

    def result(excess):
        return torch.ones(3) + excess * (next(calls) if excess == 1e-4 else 1)

    monkeypatch.setattr(passes, "right", result, raising=False)
    shapes = [(8, 97, 97), (1, 97, 97)]
    variants = {
        name: Variant("backward", "right", {"excess": excess}, shapes)
        for name, excess in (("good", 1e-3), ("bad", 0.1), ("unsteady", 1e-4))
    }
    monkeypatch.setattr(race, "VARIANTS", variants)
    timed = []

    def measure_in_turns(calls, repeats, stream):
        timed.append([call(0)[0][0].item() for call in calls])
        return [Timing(90.0, 89.0, 91.0, 5.0), Timing(100.0, 99.0, 101.0, 5.0)]

    monkeypatch.setattr(race, "measure_in_turns", measure_in_turns)
    with pytest.raises(ValueError, match=r"bad 8x97x97: not measured\. ValueError: the error is 1\.0e-01") as error:
        race_variants(config, torch.device("cuda"))
    assert "unsteady 8x97x97: not measured. ValueError: two runs on the same inputs" in str(error.value)
    assert timed == [[pytest.approx(1.001), 1.0]] * 2
    rows = read_records(tmp_path / "kernels_variants.csv")
    assert [(row["variant"], row["shape"], row["ratio"]) for row in rows] == [
        ("good", "8x97x97", "0.9"),
        ("good", "1x97x97", "0.9"),
    ]
    assert rows[0]["difference"] == "1.0e-03"
    assert read_records(ROOT / "results" / "kernels_variants_gpu.csv")[0].keys() == rows[0].keys()
