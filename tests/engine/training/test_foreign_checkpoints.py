"""Runs resumed from another person's checkpoint: W&B accounts, and junk where a run expects its own state."""

import copy

import pytest
from conftest import composed

from ccnet import train as training
from ccnet.engine import checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the checkpoint of a finished run of one iteration."""
    folder = tmp_path_factory.mktemp("run")
    training.train(composed("recipe.max_iters=1"), folder)
    return folder / "last.pt"


@pytest.fixture
def foreign(run, tmp_path):
    """Return a function that changes the checkpoint and returns the folder of a run with only the result."""

    def changed(training=(), **fields):
        saved = copy.deepcopy(checkpoints.load(run))
        saved.config |= fields.pop("config", {})
        saved.training |= dict(training)
        for name, value in fields.items():
            setattr(saved, name, value)
        (tmp_path / "run").mkdir()
        checkpoints.save(saved, tmp_path / "run" / "last.pt")
        return tmp_path / "run"

    return changed


def test_the_wandb_account_of_another_person_is_used_only_if_set(foreign, run_entry, monkeypatch, tmp_path):
    import wandb

    started, init = [], wandb.init

    def noted(**named):
        started.append(tuple(named[key] for key in ("entity", "project", "id")))
        return init(**named | {"mode": "disabled"})

    monkeypatch.setattr(wandb, "init", noted)
    logger = dict(composed("logger=wandb").logger) | {"entity": "stranger", "project": "theirs"}
    folder = foreign({"wandb_id": "abcd1234"}, config={"logger": logger})
    done = run_entry("train.py", f"resume={folder}")
    assert "logger.entity=stranger logger.project=theirs" in done.stdout
    assert "has no files of the run abcd1234" in done.stdout
    (folder / "result.json").unlink()  # it would end the run as finished
    (folder / "wandb" / "offline-run-20260101_000000-abcd1234").mkdir(parents=True)
    checkpoints.save(saved_with(folder, wandb_id="abcd1234", logger=logger), folder / "last.pt")
    run_entry("train.py", f"resume={folder}", "logger.entity=me", "logger.project=mine")
    assert started == [(None, "ccnet", None), ("me", "mine", "abcd1234")]


def saved_with(folder, *, wandb_id, logger):
    saved = checkpoints.load(folder / "last.pt")
    saved.training["wandb_id"], saved.config["logger"] = wandb_id, logger
    return saved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": {"miou": "high"}}, "the scores in the checkpoint are not those of a validation"),
        ({"scores": {}}, "the scores in the checkpoint are not those of a validation"),
        ({"training": {"wandb_id": "../../x"}}, "'../../x' cannot be the id of a W&B run"),
        ({"config": {"device": "meta"}}, "device=meta, but this machine has no such device"),
        ({"config": {"num_workers": 1024}}, "num_workers is 1024, but must be at most"),
    ],
)
def test_junk_in_a_checkpoint_ends_in_one_message(foreign, run_entry, monkeypatch, changes, message):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    done = run_entry("train.py", f"resume={foreign(**changes)}", ok=False)
    assert done.stderr.count("error: ") == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
