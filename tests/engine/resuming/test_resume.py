"""Where a run starts: in a folder of its own, or from the newest state of the same run, whatever code wrote it."""

import errno
import hashlib
import json
import os
import re
import shutil

import pytest
import torch
from conftest import composed
from former_configs import former_names
from omegaconf import OmegaConf

from ccnet import train as training
from ccnet.engine import checkpoints, resuming
from ccnet.engine.guards import plain
from ccnet.engine.runtime import FolderLock, FolderTaken
from ccnet.engine.runtime.overrides import as_command_line
from ccnet.engine.sweeps import finished_score, set_aside_result

# Settings that may change when a run is resumed, and that its fingerprint ignores.
FREE = {
    "resume", "device", "num_workers", "log_every", "save_every", "logger", "skip_broken", "skip_nonfinite",
    "collective_timeout", "allow_env",
}  # fmt: skip


@pytest.fixture
def former(whole, tmp_path):
    """Return the folder of the same run as an earlier version would have left it after two iterations."""
    saved = checkpoints.load(whole / "previous.pt")
    config = {key: value for key, value in former_names(plain(composed())).items() if key not in FREE}
    saved.config = former_names(saved.config)
    del saved.training["contents"]
    saved.training["identity"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    assert "ccnet" not in json.dumps([config, {key: saved.config[key] for key in ("model", "dataset", "loss", "task")}])
    folder = tmp_path / "runs" / "former"
    folder.mkdir(parents=True)
    checkpoints.save(saved, folder / "last.pt")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("resume", ["auto", "folder"])
def test_an_older_run_resumes_to_the_same_result(whole, former, tmp_path, resume):
    config = composed(f"resume={former if resume == 'folder' else 'auto'}")
    with resuming.find_start(config, tmp_path / "runs" / "new") as start:
        folder, saved = start
    assert (folder, saved.iteration) == (former, 2)
    training.train(resuming.continued(config, saved), folder, saved)
    one, two = (checkpoints.load(path / "last.pt") for path in (whole, former))
    assert (one.iteration, repr(one.scores)) == (two.iteration, repr(two.scores))
    assert all(torch.equal(values, two.weights[name]) for name, values in one.weights.items())


@pytest.mark.slow
def test_the_duration_and_the_speed_in_the_result_cover_the_parts_before_a_resumption(whole, tmp_path):
    """A run was killed after its last validation, before it wrote its result."""
    folder = shutil.copytree(whole, tmp_path / "run")
    before = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    saved = checkpoints.load(folder / "last.pt")
    assert 0 < saved.training["seconds"] <= before["seconds"]
    saved.training["seconds"] = 1000.0
    training.train(composed(), folder, saved)
    after = json.loads((folder / "result.json").read_text())
    assert after["seconds"] > 1000
    assert after["val_images_per_s"] == before["val_images_per_s"] > 0


def start(config, folder):
    """Return where a run would start."""
    with resuming.find_start(config, folder) as found:
        return found


def test_a_new_run_never_takes_the_folder_of_another(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(FolderTaken, match=rf"{folder} already holds a run, .* resume={folder}, or .*hydra.run.dir=DIR"):
        start(composed(), folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with FolderLock(tmp_path / "new"), pytest.raises(FolderTaken, match="new is in use by process"):
        start(composed(), tmp_path / "new")


@pytest.mark.parametrize("resume", ["null", "auto"])
def test_a_new_run_does_not_overwrite_files_of_the_user(tmp_path, resume):
    """A folder of data often holds a train.csv, and one of code a config.yaml."""
    own, folder = {"config.yaml": "lr: 1\n", "train.csv": "image,mask\n"}, tmp_path / "runs" / "new"
    folder.mkdir(parents=True)
    for name, text in own.items():
        (folder / name).write_text(text)
        config = composed(f"resume={resume}")
        with pytest.raises(FolderTaken, match=f"holds .*{name}, not written"), resuming.find_start(config, folder):
            pass
    assert {path.name: path.read_text() for path in folder.iterdir()} == own


@pytest.mark.parametrize("text", [OmegaConf.to_yaml(composed(), resolve=True), "", "\0" * 100])
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "train.csv").write_text("iteration,loss\r\n1,2.0\r\n")
    with resuming.find_start(composed(), tmp_path) as start:
        assert start == (tmp_path, None)


def test_a_folder_without_a_state_is_refused_with_what_to_set_instead(whole, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "best.safetensors").touch()
    for folder, message in {
        whole / "last": f"set resume={whole}$",
        whole / "best.safetensors": f"set resume={whole}$",
        tmp_path / "weights": f"init={tmp_path}/weights/best$",
        tmp_path / "nothing": "there is no checkpoint .*/nothing/last.pt.* expects the folder of a run",
    }.items():
        with pytest.raises(FileNotFoundError, match=message):
            resuming.preview(composed(f"resume={folder}"))


def test_the_framework_and_device_of_a_resumed_run_are_its_own_unless_given(whole):
    config = composed(f"resume={whole}", "framework=jax", "device=cuda")
    assert resuming.preview(config) == {"framework": "torch", "device": "cpu"}
    with as_command_line([f"resume={whole}", "device=cuda"]):
        assert resuming.preview(config) == {"framework": "torch", "device": "cuda"}
    config.resume = "auto"
    assert resuming.preview(config) is config


@pytest.mark.parametrize("resume", ["auto", "folder"])
def test_a_run_that_is_in_use_is_not_joined(whole, tmp_path, monkeypatch, capsys, resume):
    folder = shutil.copytree(whole, tmp_path / "run")
    config = composed(f"resume={folder if resume == 'folder' else 'auto'}")
    for own in (folder, tmp_path / "new"):
        with FolderLock(folder), pytest.raises(FolderTaken, match="run is in use by process"):
            start(config, own)
    # In a sweep, another of its runs may be the same, and this one must not fail for that reason.
    monkeypatch.setattr("ccnet.engine.resuming.start.in_sweep", lambda: True)
    if resume == "auto":
        with FolderLock(folder):
            assert start(config, tmp_path / "new") == (tmp_path / "new", None)
        assert f"skipped {folder}, which is in use" in capsys.readouterr().out


def test_two_new_runs_do_not_share_a_folder(whole, tmp_path):
    """Neither run has a checkpoint yet for the other one to find."""
    new, occupied = tmp_path / "new", shutil.copytree(whole, tmp_path / "run")
    with FolderLock(new), pytest.raises(FolderTaken, match="new is in use by process"):
        start(composed("resume=auto", "seed=1"), new)
    with FolderLock(tmp_path / "run_2"):
        assert start(composed("resume=auto", "seed=1"), occupied) == (tmp_path / "run_3", None)


@pytest.mark.slow
def test_the_number_of_iterations_decides_between_checkpoints(whole, tmp_path, capsys):
    """Neither a clock that went backwards nor the newer files of a backup do."""
    folder = shutil.copytree(whole, tmp_path / "run")
    os.utime(folder / "last.pt", (1, 1))
    backup = shutil.copytree(whole, tmp_path / "a_backup")
    (backup / "last.pt").unlink()
    for path in backup.iterdir():
        os.utime(path, (2**32, 2**32))
    for resume, own in (("auto", "new"), ("auto", "run"), (folder, "new")):
        (tmp_path / "new").mkdir(exist_ok=True)  # as Hydra does
        found = start(composed(f"resume={resume}"), tmp_path / own)
        assert (found.folder, found.saved.iteration, found.saved.source.name) == (folder, 4, "last.pt")
        assert (tmp_path / "new").exists() == (resume != "auto" or own != "new")
    assert start(composed("resume=auto"), backup)[0] == backup  # a run's own folder precedes those beside it
    (folder / "last.pt").rename(folder / "older.pt")
    (folder / "previous.pt").rename(folder / "last.pt")
    (folder / "older.pt").rename(folder / "previous.pt")
    assert start(composed(f"resume={folder}"), tmp_path / "new").saved.source.name == "previous.pt"


def test_a_result_belongs_to_one_run_and_one_checkpoint(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    last, previous = (checkpoints.load(folder / name) for name in ("last.pt", "previous.pt"))
    assert finished_score(folder, last, 4) is not None
    assert finished_score(folder, previous, 4) is None  # a new run in this folder was killed at its second iteration
    assert finished_score(folder, last, 6) is None
    last.training["identity"] = "that of another seed"
    assert finished_score(folder, last, 4) is None
    set_aside_result(folder)
    assert not (folder / "result.json").exists()
    assert json.loads((folder / "result_4.json").read_text())["iterations"] == 4
    (folder / "result.json").write_text('{"error": "the disk has gone"}')
    set_aside_result(folder)
    assert [path.name for path in folder.glob("result*")] == ["result_4.json"]


def test_auto_extends_a_shorter_run_but_never_one_of_a_sweep(whole, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(whole, tmp_path / "run")
    longer = composed("resume=auto", "recipe.max_iters=6")
    for own in (folder, tmp_path / "new"):
        assert start(longer, own).folder == folder
    assert start(composed("resume=auto", "recipe.max_iters=3"), tmp_path / "new") == (tmp_path / "new", None)
    assert "at iteration 4, has recipe.max_iters=4 instead of 3" in capsys.readouterr().out
    monkeypatch.setattr("ccnet.engine.resuming.start.in_sweep", lambda: True)
    assert start(longer, folder) == (tmp_path / "run_2", None)
    with pytest.raises(ValueError, match=r"recipe.max_iters=3, but .*last.pt already has 4 iterations: set 4 or more"):
        resuming.continued(composed("resume=auto", "recipe.max_iters=3"), checkpoints.load(folder / "last.pt"))


@pytest.mark.slow
def test_a_run_of_the_requested_length_precedes_a_shorter_one_with_more_iterations(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "shorter")
    saved = checkpoints.load(whole / "previous.pt")
    saved.config = plain(composed("recipe.max_iters=6", f"num_classes={len(saved.classes)}"))
    (tmp_path / "same").mkdir()
    checkpoints.save(saved, tmp_path / "same" / "last.pt")
    for own in ("new", "shorter"):
        found = start(composed("resume=auto", "recipe.max_iters=6"), tmp_path / own)
        assert (found.folder, found.saved.iteration) == (tmp_path / "same", 2)
    for more, shown in (((), "$"), (("clip_norm=9",), " and 1 more$")):
        other = composed("resume=auto", "recipe.max_iters=6", "seed=1", "accumulate=2", "bf16=true", *more)
        assert start(other, tmp_path / "new").saved is None
        line = capsys.readouterr().out.splitlines()[-1]
        assert re.search(rf"shorter at iteration 4, has (\w+=\w+ instead of \w+(, )?){{3}}{shown}", line), line


def test_processes_that_see_different_folders_do_not_start(whole, tmp_path, monkeypatch):
    """As on machines whose file systems are not shared."""
    monkeypatch.setattr("ccnet.engine.resuming.start.from_all", lambda iteration: [iteration, 2])
    with pytest.raises(ValueError, match=r"checkpoints of different iterations, \[4, 2\]: all machines must see"):
        start(composed(f"resume={whole}"), tmp_path / "new")


def test_an_option_that_would_change_a_named_run_is_refused(whole, tmp_path):
    with (
        as_command_line([f"resume={whole}", "seed=1"]),
        pytest.raises(ValueError, match="remove seed=1"),
    ):
        start(composed(f"resume={whole}", "seed=1"), tmp_path / "new")


def test_a_continuation_that_is_not_exact_says_why(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    saved = checkpoints.load(folder / "previous.pt")
    saved.training["random"] *= 2
    saved.training["contents"]["training data"] = "9 images, abc"
    reasons = (
        r"recipe.batch_size=4 instead of 2; number of processes 1 instead of 2; "
        r"other training data \(9 images, abc instead of 8 images, "
    )
    saved.training["overrides"] = {"recipe.lr": 0.1, "recipe.batch_size": 2}
    with (
        pytest.warns(UserWarning, match=f"this continuation is not exact: {reasons}"),
        as_command_line([f"resume={folder}", "recipe.batch_size=4"]),
    ):
        training.train(composed("recipe.batch_size=4"), folder, saved)
    done = checkpoints.load(folder / "last.pt")
    assert done.iteration == 4
    assert done.training["identity"] == saved.training["identity"]
    assert done.training["contents"]["training data"].startswith("8 images, ")
    result = json.loads((folder / "result.json").read_text())
    assert result["overrides"] == done.training["overrides"] == {"recipe.lr": 0.1, "recipe.batch_size": 4}


def test_an_error_that_may_be_temporary_does_not_send_a_run_back_to_its_start(whole, tmp_path, monkeypatch):
    folder = shutil.copytree(whole, tmp_path / "run")

    def fails(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for resume in ("auto", folder):
        for place in ("torch.load", "ccnet.engine.resuming.start.load"):
            with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output error"):
                patched.setattr(place, fails)
                start(composed(f"resume={resume}"), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not (folder / "run.lock").exists()


def test_a_missing_folder_is_not_called_a_full_disk(whole, tmp_path):
    saved = checkpoints.load(whole / "last.pt")
    for name in ("last.pt", "best.safetensors"):
        with pytest.raises(OSError, match="the folder of the run has been moved or removed") as raised:
            checkpoints.save(saved, tmp_path / "gone" / name)
        assert "disk" not in str(raised.value)
