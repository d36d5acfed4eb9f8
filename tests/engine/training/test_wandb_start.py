"""How a W&B run is started: its mode, its id, and the settings that W&B itself reads."""

import errno
import os
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import wandb
from wandb.sdk import wandb_setup
from wandb.sdk.lib.service import service_process

from ccnet.engine.training import wandb_logger
from ccnet.engine.training.wandb_logger import WandbRun


@pytest.fixture
def inits(monkeypatch):
    """Replace W&B by a fake without settings of its own; yield the arguments with which runs are started."""
    made = []

    def init(**named):
        made.append(named)
        number = f"random{len(made)}"
        return SimpleNamespace(id=named["id"] or os.environ.get("WANDB_RUN_ID", number), offline=True, finish=Mock())

    settings = SimpleNamespace(mode="online", base_url="https://wandb.example")
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb_setup, "singleton", lambda: SimpleNamespace(settings=settings, _connection=None))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_RUN_ID", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    return SimpleNamespace(made=made, settings=settings)


def started(folder, **options):
    return WandbRun(folder, name="run", config={}, project="ccnet", **options)


@pytest.mark.parametrize("mode", ["online", "run", "shared"])
def test_wandb_mode_without_a_key_is_an_error_rather_than_a_prompt(tmp_path, inits, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(ValueError, match=f"WANDB_MODE={mode}, but W&B has no API key"):
        started(tmp_path)
    assert inits.made == []
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    started(tmp_path)
    assert inits.made[0]["mode"] == mode


def test_wandb_settings_files_set_the_server_and_the_mode(tmp_path, inits, monkeypatch):
    """``wandb login --host`` and ``wandb disabled`` write them."""
    (tmp_path / "netrc").write_text("machine wandb.example login user password key\n")
    started(tmp_path)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    started(tmp_path)
    inits.settings.mode = "disabled"
    started(tmp_path)
    assert [named["mode"] for named in inits.made] == ["offline", "online", "disabled"]


def test_runs_of_one_program_share_no_wandb_id(tmp_path, inits, monkeypatch):
    """``WANDB_RUN_ID`` would merge the runs of a sweep, or of a loop in a notebook, into one."""
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    monkeypatch.setattr(wandb_logger, "_STARTED", set())
    ids = [started(tmp_path).run_id for _ in range(3)]
    assert ids[0] == "given" and len(set(ids)) == 3
    assert started(tmp_path, run_id="given").run_id == "given"
    monkeypatch.setattr(wandb_logger, "_STARTED", set())
    monkeypatch.setattr(wandb_logger, "in_sweep", lambda: True)
    assert started(tmp_path).run_id not in {None, *ids}


def test_a_setting_that_wandb_rejects_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ValueError, match=r"W&B rejects its setting mode: .*'offline'.* WANDB_MODE"):
        started(tmp_path)
    with pytest.raises(ValueError, match="W&B: Invalid project name"):
        WandbRun(tmp_path, name="run", config={}, project="a/b", mode="offline")
    with pytest.raises(ValueError, match=r"logger\.timeout is -1: set a number of seconds of at least 0"):
        WandbRun(tmp_path, name="run", config={}, project="ccnet", timeout=-1)


@pytest.mark.slow
def test_a_wandb_run_of_the_program_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = wandb.init(mode="offline", project="own", settings=wandb.Settings(silent=True))
    run = started(tmp_path / "run", mode="offline")
    assert run.run_id != own.id
    run.scalars(1, {"loss": 1.0})
    run.close(failed=False)
    assert wandb.run is own
    own.log({"loss": 2.0})  # raises an error if the run is finished
    own.finish()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (wandb.Error("Error initializing run: entity me not found\n"), "W&B did not accept the run, so this run is"),
        (wandb.Error(""), "W&B did not accept the run, so this run is logged offline: Error. To"),
        (wandb.errors.CommError("Timed out"), "W&B could not be reached, so this run is logged offline: Timed out. To"),
    ],
)
def test_a_run_that_the_server_refuses_is_logged_offline(tmp_path, inits, monkeypatch, capsys, error, message):
    """Such as a server that does not know ``logger.entity``, or the login page of a network."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    offline = SimpleNamespace(id="made", offline=True, dir=str(tmp_path / "files"))
    monkeypatch.setattr(wandb, "init", Mock(side_effect=[error, offline]))
    assert started(tmp_path).run is offline
    assert [call.kwargs["mode"] for call in wandb.init.call_args_list] == ["online", "offline"]
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["offline", "auto"])
@pytest.mark.parametrize("command", ["/nonexistent", "/etc/hostname", "/bin/false"])
def test_training_continues_if_the_process_of_wandb_cannot_start(tmp_path, monkeypatch, capfd, command, mode):
    """W&B 0.31 waits for itself for ever if the process cannot start in ``wandb.setup``."""
    wandb.teardown()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(service_process, "get_core_path", lambda: command)
    run = started(tmp_path, mode=mode, run_id="before")
    assert "This run continues without W&B: " in capfd.readouterr().err
    run.scalars(1, {"loss": 1.0})
    run.validation(1, ["class"], [["road"]], [])
    run.close(failed=False)
    assert run.run_id == "before"


def test_training_continues_if_wandb_cannot_store_an_image(tmp_path, inits, monkeypatch, capsys):
    """W&B writes images to the temporary folder, which may be on another disk than the run."""
    monkeypatch.setattr(wandb, "Image", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    run = started(tmp_path)
    run.run.dir = str(tmp_path / "files")
    run.validation(1, ["class"], [["road"]], [(None, {})])
    assert "W&B did not accept the table of iteration 1: [Errno 28] No space left" in capsys.readouterr().err
    run.run.log = Mock(side_effect=RuntimeError("broken"))
    monkeypatch.setattr(wandb, "teardown", Mock())
    run.scalars(1, {"loss": 1.0})
    assert "This run continues without W&B: broken" in capsys.readouterr().err
    assert run.run is None
    wandb.teardown.assert_not_called()  # it would finish a W&B run of the program, too


@pytest.mark.parametrize("setup", [SimpleNamespace(_connection=SimpleNamespace()), SimpleNamespace()])
def test_training_continues_with_a_version_of_wandb_that_stores_its_process_elsewhere(
    tmp_path, inits, monkeypatch, capsys, setup
):
    run = started(tmp_path)
    monkeypatch.setattr(wandb_setup, "singleton", lambda: setup)
    run.run.dir, run.run.log = str(tmp_path / "files"), Mock(side_effect=ConnectionError("broken"))
    run.scalars(1, {"loss": 1.0})
    assert "This run continues without W&B: broken" in capsys.readouterr().err
    assert run.run is None


@pytest.mark.slow
def test_a_process_of_wandb_that_does_not_respond_is_ended(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run = started(tmp_path, mode="offline")
    process = wandb_setup.singleton()._connection._proc._process
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(run, "_limit", 1.0)
    run.close(failed=False)
    assert process.wait() == -signal.SIGKILL
    assert "This run continues without W&B" in capfd.readouterr().err
    run = started(tmp_path, mode="offline")  # as in a sweep
    run.scalars(1, {"loss": 1.0})
    run.close(failed=False)
    assert run.run is not None
