"""Files of a run whose writing was cut short."""

import errno
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import composed
from interrupted_runs import rows

from ccnet.engine import drawing
from ccnet.engine.drawing import ScalarFile
from ccnet.engine.training import RunLog


def test_a_truncated_row_is_dropped(tmp_path):
    log = ScalarFile(tmp_path / "train.csv", keep_until=0)
    for iteration in (9, 10, 11, 12):
        log.add({"iteration": iteration, "loss": 0.5})
    path = tmp_path / "train.csv"
    path.write_bytes(path.read_bytes()[: -len("2,0.5\r\n")])
    log = ScalarFile(path, keep_until=11)
    assert log.rows == [{"iteration": iteration, "loss": 0.5} for iteration in (9, 10, 11)]
    log.add({"iteration": 12, "loss": 0.5})
    assert [row["iteration"] for row in rows(path)] == ["9", "10", "11", "12"]


@pytest.mark.parametrize(("iteration", "validated", "kept"), [(3, 2, [2]), (4, 2, [2]), (4, 4, [2, 4])])
def test_a_resumed_run_drops_the_rows_that_it_will_write_again(tmp_path, iteration, validated, kept):
    """A checkpoint may be newer than the latest validation, or be from before the validation of its iteration."""
    for name, every in (("train", 1), ("val", 2)):
        log = ScalarFile(tmp_path / f"{name}.csv", keep_until=0)
        for number in range(every, 6, every):
            log.add({"iteration": number, "loss": 0.5})
    state = SimpleNamespace(iteration=iteration, validated=validated, wandb_id=None)
    dataset = SimpleNamespace(classes=["a"], palette=[[0, 0, 0]])
    RunLog(composed(), tmp_path, task=None, dataset=dataset, state=state, group=None)
    assert [int(row["iteration"]) for row in rows(tmp_path / "train.csv")] == [*range(1, iteration + 1)]
    assert [int(row["iteration"]) for row in rows(tmp_path / "val.csv")] == kept


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda text: text.replace(b"10,0.5", b"\0" * 6), [9, 11]),  # a power cut
        (lambda text: text.replace(b"10,0.5", b"1\xff,0.5"), [9, 11]),
        (lambda text: text.replace(b"10,0.5", b"10,abc"), [9, 11]),
        (lambda text: text.replace(b"10,0.5\r\n11,", b"10,0.511,"), [9]),
        (lambda text: text.replace(b"iteration", b"\0" * 9), []),
        (lambda text: text.replace(b'"\r\n', b"\0\r\n"), []),  # the end of the header
    ],
)
def test_lines_that_cannot_be_read_do_not_prevent_a_run_from_continuing(tmp_path, capsys, damage, left):
    path = tmp_path / "train.csv"
    log = ScalarFile(path, keep_until=0)
    for iteration in (9, 10, 11):
        log.add({"iteration": iteration, "IoU/ü, \u2028": 0.5})
    path.write_bytes(damaged := damage(path.read_bytes()))
    log = ScalarFile(path, keep_until=11)
    log.add({"iteration": 12, "IoU/ü, \u2028": 0.5})
    assert [row["iteration"] for row in log.rows] == [*left, 12]
    assert ScalarFile(path, keep_until=12).rows == log.rows
    assert path.with_name("train.csv.damaged").read_bytes() == damaged
    assert re.search(rf"lines that cannot be read are left out: \d, see {path}\.damaged", capsys.readouterr().err)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    def half(self, to, *args, **named):
        Path(to).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def video(path):
        with drawing.open_video(path, fps=5) as made:
            made.add(np.zeros((4, 4, 3), np.uint8))

    monkeypatch.setattr("PIL.Image.Image.save", half)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    path, labels = tmp_path / "made.png", np.zeros((4, 4), np.uint8)
    path.write_bytes(b"before")
    for write in (
        lambda: drawing.save_mask(path, labels, [(0, 0, 0)]),
        lambda: drawing.save_curves(path, [], [], []),
        lambda: video(path.with_suffix(".gif")),
    ):
        with pytest.raises(OSError, match=r"No space left on device: .*made"):
            write()
        assert [path.read_bytes(), list(tmp_path.iterdir())] == [b"before", [path]]
