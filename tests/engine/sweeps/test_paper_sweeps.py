"""The sweeps in ``conf/sweep`` are those of the paper's tables."""

import pytest
from conftest import configured
from omegaconf import OmegaConf
from sweep_results import jobs

from ccnet.models.criss_cross import CrissCrossAttention
from ccnet.models.factory import build

pytestmark = pytest.mark.slow


def test_table_2_sweeps_the_recurrence():
    """Cityscapes selects the category consistent loss by default, but only the last row uses it."""
    seen = []
    for own in jobs("recurrence"):
        config = configured("dataset=cityscapes", "num_classes=19", "backbone=beacons", "model.head.channels=16", *own)
        model = build(config.model)
        attention = any(isinstance(module, CrissCrossAttention) for module in model.modules())
        seen.append((attention, config.model.head.recurrence, "ccl" in config.loss.terms, model.embed is not None))
        assert config.optimizer.algorithm.lr == 0.01
    assert seen == [
        (False, 0, False, False), (True, 1, False, False), (True, 2, False, False), (True, 3, False, False),
        (True, 2, True, True),
    ]  # fmt: skip


def test_table_3_sweeps_the_distance():
    runs = [configured("dataset=cityscapes", *own) for own in jobs("distance")[::5]]
    assert len(jobs("distance")) == 20
    assert [(run.loss.terms.ccl.distance, run.seed) for run in runs] == [
        ("quadratic", 0), ("quadratic", 5), ("piecewise", 0), ("piecewise", 5),
    ]  # fmt: skip
    assert all(run.model.head.recurrence == 2 and run.loss.weights.ccl == 1 for run in runs)


def test_table_4_sweeps_the_context():
    runs = [configured("dataset=cityscapes", *own) for own in jobs("contexts")]
    contexts = [run.model.head.context and run.model.head.context._target_.rpartition(".")[2] for run in runs]
    assert contexts == [
        None, "GlobalConvolution", "PyramidPooling", "AtrousPyramid", "NonLocal", "HorizontalVertical",
        "ParallelHorizontalVertical", *["CrissCrossAttention"] * 4,
    ]  # fmt: skip
    assert ["ccl" in run.loss.terms for run in runs] == [False] * 10 + [True]
    assert len({OmegaConf.to_yaml(OmegaConf.masked_copy(run, ["model", "loss"])) for run in runs}) == 11
    assert len({OmegaConf.to_yaml(OmegaConf.masked_copy(run, ["recipe", "dataset", "optimizer"])) for run in runs}) == 1
