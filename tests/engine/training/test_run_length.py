"""When a run ends, and which of its checkpoints is the best."""

import json

import pytest
from conftest import TINY

from ccnet.engine import checkpoints
from ccnet.engine.drawing.tables import read_records
from ccnet.engine.evaluation.confusion import ConfusionMatrix, Scores
from ccnet.engine.evaluation.tasks import Detection, Semantic, check_monitor, monitored_score
from ccnet.train import run

pytestmark = pytest.mark.slow

SCORES = [0.3, 0.5, 0.5, 0.4, 0.6]  # mIoU and IoU of the second class of the validations after each iteration
SECOND = [0.1, 0.2, 0.9, 0.1, 0.3]


@pytest.fixture
def scored(monkeypatch):
    """Let validations return the scores above."""
    number = iter(range(len(SCORES)))

    def scores(self):
        index = next(number)
        return Scores(SCORES[index], 0.5, 0.5, [0.5, SECOND[index], 0.5, 0.5], [0.5] * 4)

    monkeypatch.setattr(ConfusionMatrix, "scores", scores)


def short(*overrides):
    return [
        *(part for part in TINY if "max_iters" not in part and "val_every" not in part),
        "recipe.val_every=1",
        *overrides,
    ]


def iterations(folder):
    return [int(row["iteration"]) for row in read_records(folder / "val.csv")]


def test_a_run_ends_without_a_better_score_and_continues_with_more_patience(scored, tmp_path, capsys):
    command = short("recipe.max_iters=5", "resume=auto")
    assert run(*command, "recipe.patience=2", folder=tmp_path) == 0.5
    assert iterations(tmp_path) == [1, 2, 3, 4]
    printed = capsys.readouterr().out
    assert "ended early  2 validations without a better score" in printed
    assert "best score   mIoU 50.00" in printed  # the table is that of the last validation, which is worse
    assert json.loads((tmp_path / "result.json").read_text())["iterations"] == 4
    assert checkpoints.load(tmp_path / "best.safetensors").iteration == 3  # of equal scores, the newest
    assert run(*command, "recipe.patience=2", folder=tmp_path) == 0.5
    assert f"{tmp_path} is already finished: resume={tmp_path} recipe.patience=MORE" in capsys.readouterr().out
    assert run(f"resume={tmp_path}", "recipe.patience=3", folder=tmp_path) == 0.6
    assert iterations(tmp_path) == [1, 2, 3, 4, 5]


def test_the_best_is_chosen_by_the_monitored_score(scored, tmp_path, capsys):
    name = "IoU/red beacon"
    assert run(*short("recipe.max_iters=3", f"recipe.monitor='{name}'"), folder=tmp_path) == 0.9
    assert checkpoints.load(tmp_path / "best.safetensors").iteration == 3
    assert json.loads((tmp_path / "result.json").read_text())[f"best_{name}"] == 90
    assert f"best score   {name} 90.00" in capsys.readouterr().out


def test_epochs_are_whole_passes_over_the_training_images(tmp_path):
    for length in ("recipe.max_iters=9", "++recipe.max_iters=9"):
        with pytest.raises(ValueError, match=r"recipe.max_iters=9 and recipe.epochs=1: set only one"):
            run(*short("recipe.epochs=1", length), folder=tmp_path)
    command = short("recipe.epochs=2", "dataset.train.length=3", "recipe.val_every=10", "resume=auto")
    run(*command, folder=tmp_path)
    saved = checkpoints.load(tmp_path / "last.pt")
    assert saved.iteration == saved.config["recipe"]["max_iters"] == 3  # two passes over three images, two at a time
    assert saved.config["optimizer"]["schedule"]["total_steps"] == 3
    run(*command[:-1], "recipe.epochs=3", "resume=auto", folder=tmp_path)
    assert checkpoints.load(tmp_path / "last.pt").iteration == 5  # the last one begins a fourth pass


def test_monitored_scores_are_those_in_val_csv():
    scores = Scores(0.1, 0.2, 0.3, [0.4, 0.5], [0.6, 0.7])
    found = [monitored_score(scores, ["road", "car"], name) for name in (None, "mIoU", "mean_acc", "IoU/car")]
    assert found == pytest.approx([0.1, 0.1, 0.3, 0.5])
    check_monitor(Semantic(), ["road", "car"], "IoU/road")
    check_monitor(Detection(), ["road", "car"], "mask AP/car")
    check_monitor(Detection(), ["road", "car"], "box_AP")
    with pytest.raises(ValueError, match=r"recipe.monitor=IoU/sky is not a score .* mIoU, .*, IoU/car"):
        check_monitor(Semantic(), ["road", "car"], "IoU/sky")
