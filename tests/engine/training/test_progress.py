"""What a run shows of its progress in a terminal, in a notebook and in a log file."""

import sys

import pytest
from conftest import composed

from ccnet.engine.training import progress
from ccnet.train import train


def test_a_log_file_has_a_line_every_few_minutes(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.Progress(0, 7200, shown=True) as shown:
        for iteration in range(1, 3601):  # an hour
            now += 1
            shown.advance()
            shown.show(iteration, {"loss": "0.5"}, 1.0)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert len(lines) == 12
    assert lines[:2] == ["iteration 1 of 7200: loss=0.5, 1:59:59 left", "iteration 301 of 7200: loss=0.5, 1:54:59 left"]


@pytest.mark.parametrize("where", ["terminal", "notebook"])
def test_a_terminal_and_a_notebook_have_a_bar(monkeypatch, capsys, where):
    if where == "terminal":
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    else:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    with progress.Progress(0, 2, shown=True) as shown:
        shown.advance()
        shown.show(1, {"loss": "0.5"}, 1.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert "1/2" in err


def test_a_run_writes_no_bar_to_a_log_file(tmp_path, capsys):
    train(composed(), tmp_path)
    out, err = capsys.readouterr()
    assert "it/s" not in err
    assert [line.partition(":")[0] for line in out.splitlines() if line.startswith("iteration")] == [
        "iteration 1 of 4", "iteration 2", "iteration 4",
    ]  # fmt: skip
