"""The report of a sweep: failed runs, names of runs, extended sweeps, damaged results."""

import itertools
import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from sweep_results import is_picture, jobs

from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.drawing import charts
from ccnet.engine.drawing.tables import read_records
from ccnet.engine.runtime.overrides import parse_overrides
from ccnet.engine.sweeps import results
from ccnet.engine.sweeps.report import report
from ccnet.engine.sweeps.run_settings import setting_names, short_text


def test_the_report_counts_nan_runs_as_failed(tmp_path, capsys):
    for number, own in enumerate(jobs("distance")):
        nan = number in (2, 5, 7)
        result = {"error": "iteration 9: the loss is nan"} if nan else {"mIoU": 70.0 + number % 10, "gflops": 3.0}
        results.write_result(tmp_path / str(number), {"overrides": parse_overrides(own)} | result)
    (tmp_path / "20").mkdir()
    (tmp_path / "20" / "config.yaml").write_text("")
    assert len(report(tmp_path)) == 3
    quadratic, piecewise = read_records(tmp_path / "sweep_seeds.csv")
    assert [quadratic["succeeded"], piecewise["succeeded"]] == ["7/10", "10/10"]
    assert float(quadratic["mIoU mean"]) == pytest.approx(70 + (0 + 1 + 3 + 4 + 6 + 8 + 9) / 7)
    assert float(piecewise["mIoU std"]) == pytest.approx(np.std(range(10), ddof=1))
    assert is_picture(tmp_path / "sweep.png")
    said = capsys.readouterr().out
    assert re.search(r"^loss.terms.ccl.distance=quadratic +7/10 +74.43 +3.41$", said, re.MULTILINE)
    assert "failed    loss.terms.ccl.distance=quadratic seed=2: iteration 9: the loss is nan" in said
    assert f"started   {tmp_path}/20, not finished" in said


def test_a_score_of_nan_is_shown_as_such(tmp_path, capsys):
    """A run that has been resumed on images without labels has a best score, but none from its last validation."""
    for seed, score in enumerate((50.0, math.nan, 52.0)):
        result = {"overrides": {"seed": seed}, "mIoU": score, "best_mIoU": 60.0, "gflops": 1.0}
        results.write_result(tmp_path / str(seed), result)
    assert report(tmp_path) == []
    assert re.search(r"^all seeds +3/3 +nan +nan$", capsys.readouterr().out, re.MULTILINE)
    assert is_picture(tmp_path / "sweep.png") and is_picture(tmp_path / "sweep_cost.png")


def test_runs_with_different_scores_are_listed_but_not_compared(tmp_path, capsys):
    for dataset, score in (("camvid", {"mIoU": 66.0}), ("coco", {"box_AP": 30.0})):
        result = {"overrides": {"dataset": dataset}, **score, "parameters": 3.0, "gflops": 8.0}
        results.write_result(tmp_path / dataset, result)
    assert report(tmp_path) == []
    camvid, coco = read_records(tmp_path / "sweep.csv")
    assert (camvid["mIoU"], camvid["box_AP"], coco["mIoU"], coco["box_AP"]) == ("66.0", "", "", "30.0")
    assert "no plots, because the runs have different scores: mIoU, box_AP" in capsys.readouterr().out
    assert not [*tmp_path.glob("*.png")]


def test_runs_are_named_after_overrides_of_any_type(tmp_path):
    given = [
        [
            "+experiment=contexts/fcn",
            "recipe.lr=0.0123456",
            "recipe.train_transform.crop_size=[65,81]",
            "clip_norm=null",
        ],
        ["+experiment=contexts/fcn", "recipe.lr=1", "recipe.train_transform.crop_size=[65,65]", "clip_norm=null"],
        ["+experiment=contexts/gcn", "recipe.lr=1", "recipe.train_transform.crop_size=[65,65]", "clip_norm=null"],
    ]
    for number, own in enumerate(given):
        results.write_result(tmp_path / str(number), {"overrides": parse_overrides(own), "mIoU": 50.0 + number})
    assert report(tmp_path) == []
    assert [row["run"] for row in read_records(tmp_path / "sweep.csv")] == [
        "+experiment=contexts/fcn recipe.lr=0.0123456 recipe.train_transform.crop_size=[65,81]",
        "+experiment=contexts/fcn recipe.lr=1 recipe.train_transform.crop_size=[65,65]",
        "+experiment=contexts/gcn recipe.lr=1 recipe.train_transform.crop_size=[65,65]",
    ]
    assert {path.name for path in tmp_path.glob("sweep*.png")} == {"sweep.png", "sweep_recipe.lr.png"}


def test_an_extended_sweep_is_reported_in_the_same_terms(tmp_path, capsys):
    """A later command adds seeds, resume=auto and another order of its options, and makes a failure good."""
    given = [
        ["model.head.recurrence=1", "seed=0"],
        ["model.head.recurrence=2", "seed=0"],
        ["seed=1", "model.head.recurrence=1", "resume=auto", "num_workers=0"],
        ["seed=1", "model.head.recurrence=2", "resume=auto", "num_workers=0"],
        ["seed=2", "model.head.recurrence=2", "resume=auto", "num_workers=0"],
    ]
    for number, own in enumerate(given):
        results.write_result(tmp_path / str(number), {"overrides": parse_overrides(own), "mIoU": 50.0 + number})
    failed = {"overrides": parse_overrides(["model.head.recurrence=2", "seed=2"]), "error": "the disk has gone"}
    results.write_result(tmp_path / "5", failed)
    assert report(tmp_path) == []
    assert [(row["setting"], row["succeeded"]) for row in read_records(tmp_path / "sweep_seeds.csv")] == [
        ("model.head.recurrence=1", "2/2"), ("model.head.recurrence=2", "3/3"),
    ]  # fmt: skip
    assert "the disk has gone" not in capsys.readouterr().out
    assert [row["run"] for row in read_records(tmp_path / "sweep.csv")][2] == "model.head.recurrence=1 seed=1"


def test_a_sweep_over_the_seed_alone_has_a_short_name(tmp_path):
    for seed in range(2):
        overrides = parse_overrides(["recipe.max_iters=1", "logger=none", f"seed={seed}"])
        results.write_result(tmp_path / str(seed), {"overrides": overrides, "mIoU": 50.0 + seed, "gflops": 1.0})
    report(tmp_path)
    (row,) = read_records(tmp_path / "sweep_seeds.csv")
    assert (row["setting"], float(row["mIoU mean"])) == ("all seeds", 50.5)
    assert Image.open(tmp_path / "sweep.png").width < 1500 and is_picture(tmp_path / "sweep.png")
    overrides["clip_norm"] = 1  # the sweep is extended with an option that the first runs do not set
    results.write_result(tmp_path / "2", {"overrides": overrides, "mIoU": 50.0, "gflops": 1.0})
    report(tmp_path)
    assert [row["setting"] for row in read_records(tmp_path / "sweep_seeds.csv")] == ["default", "clip_norm=1"]


def test_a_plot_over_an_option_has_a_line_for_each_setting_of_the_others(tmp_path, monkeypatch):
    drawn = {}

    def save(path, option, lines, score):
        drawn[option] = {name: dict(by_value) for name, by_value in lines.items()}

    monkeypatch.setattr("ccnet.engine.sweeps.report.charts.save_trend", save)
    own = itertools.product((1, 2), (False, True), (0, 1))
    grid = [{"+model.head.recurrence": r, "bf16": bf16, "seed": seed} for r, bf16, seed in own]
    search = [{"recipe.lr": number / 10, "clip_norm": number, "seed": 0} for number in (1, 2, 3)]
    for name, runs in (("grid", grid), ("search", search)):
        for number, overrides in enumerate(runs):
            results.write_result(tmp_path / name / str(number), {"overrides": overrides, "mIoU": float(number)})
        report(tmp_path / name)
    off, on = {1: [0.0, 1.0], 2: [4.0, 5.0]}, {1: [2.0, 3.0], 2: [6.0, 7.0]}
    assert drawn == {
        "model.head.recurrence": {"bf16=False": off, "bf16=True": on},
        "recipe.lr": {"": {0.1: [0.0], 0.2: [1.0], 0.3: [2.0]}},
        "clip_norm": {"": {1: [0.0], 2: [1.0], 3: [2.0]}},
    }


def test_settings_have_short_but_distinct_names():
    values = [1.125, 0.0123456, 5, [0.5, None], {"main": 1, "ccl": 0.1}]
    assert [short_text(value) for value in values] == ["1.125", "0.0123", "5", "[0.5,null]", "{main:1,ccl:0.1}"]
    settings = [({"lr": value, "bf16": True}, [{}]) for value in (0.0123456, 0.5)]
    assert setting_names(settings) == ["lr=0.0123456", "lr=0.5"]
    assert setting_names(settings, short_text) == ["lr=0.0123", "lr=0.5"]
    assert setting_names(settings[:1]) == ["lr=0.0123456 bf16=True"]
    assert setting_names([({}, [{}])]) == ["default"]


def test_every_setting_of_a_search_is_drawn_although_rounded_values_are_equal(tmp_path, monkeypatch):
    drawn = []
    for name in ("save_comparison", "save_cost"):
        monkeypatch.setattr(charts, name, lambda path, settings, score: drawn.append([*settings]))
    for number, lr in enumerate((0.0123451, 0.0123452, 0.0456789)):
        results.write_result(tmp_path / str(number), {"overrides": {"recipe.lr": lr}, "mIoU": 50.0, "gflops": 1.0})
    report(tmp_path)
    assert drawn == [["recipe.lr=0.0123451", "recipe.lr=0.0123452", "recipe.lr=0.0457"]] * 2
    assert not (tmp_path / "sweep_seeds.csv").exists()


def test_the_table_has_the_columns_of_all_runs_in_the_order_of_the_first(tmp_path):
    for number, cost in enumerate(({"gflops": 1.0}, {}, {"gflops": 3.0})):
        result = {"mIoU": 50.0, "accuracy": 90.0} | cost | {"overrides": {"seed": number}, "identity": "a"}
        results.write_result(tmp_path / str(9 + number), result)
    report(tmp_path)
    rows = read_records(tmp_path / "sweep.csv")
    assert [list(row) for row in rows] == [["run", "mIoU", "accuracy"]] * 3
    assert [row["run"] for row in rows] == ["seed=0", "seed=1", "seed=2"]  # 9, 10, 11
    assert not (tmp_path / "sweep_cost.png").exists()


def test_an_option_of_the_execution_that_a_sweep_varies_is_reported(tmp_path):
    for number in (0, 2):
        overrides = parse_overrides([f"num_workers={number}", "resume=auto"])
        results.write_result(tmp_path / str(number), {"overrides": overrides, "mIoU": 50.0})
    report(tmp_path)
    assert [row["run"] for row in read_records(tmp_path / "sweep.csv")] == ["num_workers=0", "num_workers=2"]


def test_the_report_names_a_result_from_an_earlier_version(tmp_path):
    results.write_result(tmp_path / "0", {"overrides": ["seed=1"], "mIoU": 50.0})
    with pytest.raises(ValueError, match=r"0/result.json was written by an earlier version"):
        report(tmp_path)


def test_a_truncated_result_is_ignored(tmp_path):
    saved = Checkpoint({}, {}, [], [], 4, {}, {"identity": "a", "stale": 3})
    results.write_result(tmp_path, {"best_mIoU": 50.0, "iterations": 4, "identity": "a"})
    assert results.finished_score(tmp_path, saved, 4) == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert [results.finished_score(tmp_path, saved, 8, patience) for patience in (None, 4, 3)] == [None, None, 0.5]
    (tmp_path / "result.json").write_text(json.dumps({"overrides": {}})[:5])
    assert results.finished_score(tmp_path, saved, 4) is None
