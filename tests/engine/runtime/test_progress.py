"""What long work shows of its progress in a terminal, in a notebook and in a log file."""

import itertools
import sys
from types import SimpleNamespace

import pytest
from conftest import composed
from stand_in import stand_in

from ccnet.engine.checkpoints import save
from ccnet.engine.runtime import progress
from ccnet.train import train


def test_a_log_file_has_a_line_every_few_minutes(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    with progress.Progress("train", "iteration", 7200, first_line=True) as shown:
        for _ in range(3600):  # an hour
            now += 1
            shown.advance()
            shown.show({"loss": "0.5"}, seconds_per_step=1.0)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert len(lines) == 12
    assert lines[:2] == ["iteration 1 of 7200: loss=0.5, 1:59:59 left", "iteration 301 of 7200: loss=0.5, 1:54:59 left"]


def ticking(monkeypatch, seconds):
    """Let each look at the clock find it advanced by a number of seconds."""
    ticks = itertools.count(0, seconds)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(ticks)))  # not of other threads


def test_a_loop_that_takes_minutes_writes_lines_and_a_short_one_none(monkeypatch, capsys):
    assert list(progress.tracked("abc", "predict", "predicted image")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""
    ticking(monkeypatch, 200)
    assert list(progress.tracked("abcd", "predict", "predicted image")) == ["a", "b", "c", "d"]
    out, err = capsys.readouterr()
    assert out.splitlines() == ["predicted image 2 of 4: 0:06:40 left", "predicted image 4 of 4: 0:00:00 left"]
    assert err == ""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert [*progress.tracked("abcd", "predict", "predicted image")] and capsys.readouterr().out == ""


@pytest.mark.slow
def test_evaluation_prediction_and_checks_of_data_write_lines(monkeypatch, folder_data, tmp_path, run_entry):
    monkeypatch.setattr(progress, "EVERY", 0)
    images, masks = folder_data
    save(stand_in("fcn"), tmp_path / "best.safetensors")
    data = ["dataset=folder", f"dataset.images={images}", f"dataset.masks={masks}"]
    options = ["checkpoint=best.safetensors", "device=cpu"]
    lines = run_entry(
        "evaluate.py", *options, *data, "dataset.classes=11", "split=all", "num_workers=0"
    ).stdout.splitlines()
    assert [line[:22] for line in lines if " left" in line] == [f"validated image {done} of 6" for done in range(1, 7)]
    lines = run_entry("predict.py", *options, f"input={images}", f"output={tmp_path}/out").stdout.splitlines()
    assert [line[:22] for line in lines if " left" in line] == [f"predicted image {done} of 6" for done in range(1, 7)]
    slide = ["protocol=slide", "protocol.crop_size=[32,32]"]
    lines = run_entry("predict.py", *options, *slide, f"input={images}/0.jpg", f"output={tmp_path}/out").stdout
    assert [line[:14] for line in lines.splitlines() if " left" in line] == [f"0: pass {n} of 6" for n in range(1, 7)]
    lines = run_entry("check_data.py", *data, "dataset.classes=3", "splits=[all]", "num_workers=0").stdout.splitlines()
    assert [line[:25] for line in lines if " left" in line] == [f"all: checked image {n} of 6" for n in range(1, 7)]


@pytest.mark.parametrize("where", ["terminal", "notebook"])
def test_a_terminal_and_a_notebook_have_a_bar(monkeypatch, capsys, where):
    if where == "terminal":
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    else:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    with progress.Progress("train", "iteration", 2, first_line=True) as shown:
        shown.advance()
        shown.show({"loss": "0.5"}, seconds_per_step=1.0)
    assert list(progress.tracked("abc", "predict", "image")) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "1/2" in err and "loss=0.5" in err and "3/3" in err


@pytest.mark.slow
def test_a_run_writes_no_bar_to_a_log_file(tmp_path, capsys):
    train(composed(), tmp_path)
    out, err = capsys.readouterr()
    assert "it/s" not in err
    assert [line.partition(":")[0] for line in out.splitlines() if line.startswith("iteration")] == [
        "iteration 1 of 4", "iteration 2", "iteration 4",
    ]  # fmt: skip
