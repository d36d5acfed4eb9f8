"""``ccnet.train.run`` in a program that goes on afterwards, such as a notebook."""

import os
import signal
import threading

import pytest
from conftest import TINY

from ccnet import train as training
from ccnet.engine.runtime import FolderTaken, Stopped, StopRequest, stop_signals


def stub(monkeypatch, train):
    monkeypatch.setattr(training, "train", lambda config, folder, saved=None: train(folder))


def test_ctrl_c_is_a_keyboard_interrupt_once_the_run_is_saved(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(stop_signals, "_ECHO", 0.0)

    def interrupted(number):
        with StopRequest() as request:
            os.kill(os.getpid(), number)
            request.stop()  # after saving

    stub(monkeypatch, lambda folder: interrupted(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        training.run(*TINY, folder=tmp_path)
    stub(monkeypatch, lambda folder: interrupted(signal.SIGTERM))
    with pytest.raises(Stopped) as ended:  # a scheduler ends the program
        training.run(*TINY, folder=tmp_path)
    assert ended.value.code == 75
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_end_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(stop_signals, "_ECHO", 0.0)

    def impatient(folder):
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGINT)
            assert request.received == "SIGINT"
            os.kill(os.getpid(), signal.SIGINT)
            return "not reached"

    stub(monkeypatch, impatient)
    with pytest.raises(KeyboardInterrupt):
        training.run(*TINY, folder=tmp_path)


def test_a_second_thread_is_refused(tmp_path, monkeypatch):
    """Both would draw from the same random number generators, so that neither result could be reproduced."""
    errors = []

    def second():
        try:
            training.run(*TINY, folder=tmp_path / "b")
        except ValueError as error:
            errors.append(str(error))

    def first(folder):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        return 0.5

    stub(monkeypatch, first)
    assert training.run(*TINY, folder=tmp_path / "a") == 0.5
    assert ["another thread of this process is training" in error for error in errors] == [True]
    stub(monkeypatch, lambda folder: 0.25)
    assert training.run(*TINY, folder=tmp_path / "c") == 0.25


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ("recipe.typo=1", ValueError, r"Could not override 'recipe\.typo'"),
        ("recipe.epoch=1", ValueError, r"no option recipe\.epoch: did you mean recipe\.epochs\?"),
        ("model=typo", ValueError, "Could not find 'model/typo'"),
        ("hydra.run.dir=elsewhere", ValueError, "only applies to the command line.*folder=DIR"),
        ("--multirun", ValueError, "only applies to the command line"),
        ("--config-dir=mine", ValueError, "only applies to the command line: start ccnet-train with it"),
        ("resume=.", ValueError, r"folder=.*/run, but resume=\. continues .*: set folder=\., or .* init=\.$"),
        (["seed=1"], TypeError, r"got list: pass each option as a string"),
    ],
)
def test_an_invalid_option_is_an_error_of_the_call(tmp_path, option, error, message):
    with pytest.raises(error, match=message):
        training.run(*TINY, option, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_commands_in_messages_can_be_pasted_into_a_shell(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "best.safetensors").touch()
    with pytest.raises(FolderTaken, match=f"continue it with 'resume={folder}', or choose"):
        training.run(*TINY, folder=folder)
