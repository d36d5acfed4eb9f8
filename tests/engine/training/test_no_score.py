"""Validations without a labelled pixel: NaN is worse than every number."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import composed

from ccnet import train as training
from ccnet.data.sets.synthetic import Beacons
from ccnet.engine import checkpoints
from ccnet.engine.sweeps.report import report
from ccnet.engine.training.state import TrainingState


def test_the_newest_weights_are_the_best_until_there_is_a_number():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    state = TrainingState(model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), "")
    nan = float("nan")
    for score, is_best, best in [(nan, True, None), (nan, True, None), (0.0, True, 0.0), (nan, False, 0.0),
                                 (0.3, True, 0.3), (nan, False, 0.3), (0.2, False, 0.3)]:  # fmt: skip
        assert state.record(SimpleNamespace(_asdict=dict), score) is is_best
        assert state.score == best


@pytest.mark.slow
def test_a_run_without_a_score_is_reported_as_failed_and_its_printed_files_exist(tmp_path, monkeypatch, capsys):
    def unlabelled(self, index, read=Beacons.__getitem__):
        image, labels = read(self, index)
        return image, torch.full_like(labels, 255) if self.split == "val" or index < 6 else labels

    monkeypatch.setattr(Beacons, "__getitem__", unlabelled)
    folder = tmp_path / "0"
    assert training.train(composed(), folder) is None  # of which Optuna makes a failed trial
    text = capsys.readouterr().out
    written = re.findall(rf"^\w.* ({re.escape(str(folder))}/\S+)$", text, re.MULTILINE)
    assert len(written) >= 3 and all(Path(path).exists() for path in written)
    assert "no validation had anything to score" in text
    assert text.count("as for a batch without a labelled pixel") == 1
    assert re.search(r"no labels +[23] batches without a labelled pixel", text)
    assert checkpoints.load(folder / "best.safetensors").iteration == 4
    assert "no validation had anything to score" in json.loads((folder / "result.json").read_text())["error"]
    (failed,) = report(tmp_path)
    assert "no validation had anything to score" in failed
    saved = checkpoints.load(folder / "last.pt")
    assert training.train(composed(), folder, saved) is None  # resumed after the last validation
