"""app.py: which networks it serves, to whom, and what it says without Gradio."""

import importlib.util
import signal
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from stand_in import stand_in

from ccnet.engine import app, runtime
from ccnet.engine.checkpoints import folders, pretrained

pytestmark = pytest.mark.slow


@pytest.fixture
def served(monkeypatch):
    """Replace the server; return what it would have been started with."""
    started = {}

    @contextmanager
    def serving(viewer, **options):
        started.update(options, titles=viewer.titles)
        yield SimpleNamespace(local_url="http://127.0.0.1:7860/", block_thread=lambda: None)

    monkeypatch.setattr(app, "serving", serving, raising=False)
    return started


@pytest.fixture
def gradio(monkeypatch):
    """Return a function that says whether Gradio is installed."""
    found = importlib.util.find_spec

    def installed(answer):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: answer if name == "gradio" else found(name))

    return installed


def test_the_packaged_network_is_served_to_this_machine_only(run_entry, served, gradio, monkeypatch, tmp_path):
    gradio("installed")
    monkeypatch.setattr(pretrained, "_FOLDER", tmp_path)
    folders.write_folder(stand_in(), tmp_path / pretrained.DEFAULT)
    done = run_entry("app.py", "device=cpu")
    assert served == {"host": "127.0.0.1", "port": 7860, "max_upload_mb": 30, "titles": [pretrained.DEFAULT]}
    assert done.stdout == f"{pretrained.DEFAULT}: open http://127.0.0.1:7860/ in a browser; Ctrl-C stops the server\n"
    folders.write_folder(stand_in("fcn"), tmp_path / "fcn")
    done = run_entry("app.py", f"checkpoint=[{pretrained.DEFAULT},{tmp_path / 'fcn'}]", "host=0.0.0.0", "device=cpu")
    assert served["titles"] == [pretrained.DEFAULT, str(tmp_path / "fcn")]
    assert "warning: host=0.0.0.0: everyone who can reach this machine can use the page" in done.stdout
    done = run_entry("app.py", "device=cpu", "published.recurrence=1", ok=False)
    assert "published.recurrence would have no effect, because" in done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_ends_the_server_lets_it_remove_the_uploads(run_entry, gradio, monkeypatch, tmp_path, name):
    number, closed = getattr(signal, name), []

    def block_thread():
        assert signal.getsignal(number) is not signal.SIG_DFL  # it would end the tests
        signal.raise_signal(number)

    @contextmanager
    def serving(viewer, **options):
        try:
            yield SimpleNamespace(local_url="http://127.0.0.1:7860/", block_thread=block_thread)
        finally:
            closed.append(name)

    gradio("installed")
    monkeypatch.setattr(app, "serving", serving, raising=False)
    folders.write_folder(stand_in(), tmp_path / "network")
    before = signal.signal(number, signal.SIG_DFL)
    try:
        done = run_entry("app.py", f"checkpoint={tmp_path / 'network'}", "device=cpu", ok=False)
        assert (done.returncode, done.stderr, closed) == (130, "interrupted\n", [name])
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)
        with runtime.stopped_like_ctrl_c():
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_without_gradio_it_says_what_to_install(run_entry, served, gradio):
    gradio(None)
    done = run_entry("app.py", ok=False)
    assert "error: ccnet-app needs Gradio, which is not installed: pip install 'ccnet-segmentation[app]'" in done.stderr
    assert not served
