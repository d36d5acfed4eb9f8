"""Weights & Biases without a network, with a failing network, and in resumed runs, against a fake server."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import PATIENCE, TINY, children
from interrupted_runs import Run, newest, nothing_left_behind  # noqa: F401, fixture

pytestmark = pytest.mark.slow


KEY = {"WANDB_API_KEY": "0" * 40}
LOGGED = [*TINY, "logger=wandb", "logger.timeout=2"]


class Handler(BaseHTTPRequestHandler):
    """A minimal fake of the W&B server that records the history and attributes of each run."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = {}
        if self.path.endswith("/graphql"):
            asked = json.loads(content)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
            answer = {"data": getattr(self, operation, lambda **_: {"project": None})(**asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            history = (json.loads(content).get("files") or {}).get("wandb-history.jsonl")
            if history:
                rows = self.server.history[self.path.split("/")[-2]]
                rows[history["offset"] :] = map(json.loads, history["content"])
        answer = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_PATCH = do_POST

    def UpsertBucket(self, name, project, config=None, **about):
        self.server.about.append(about)
        rows = self.server.history.setdefault(name, [])
        owner = {"id": "p", "name": project, "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": name, "displayName": name, "project": owner, "historyLineCount": len(rows)}
        return {"upsertBucket": {"bucket": bucket | {"config": config}, "inserted": not rows}}

    def RunResumeStatus(self, name, project, **_):
        rows = self.server.history.get(name)
        bucket = rows and {
            "id": "b", "name": name, "displayName": name, "config": "{}", "summaryMetrics": json.dumps(rows[-1]),
            "historyLineCount": len(rows), "historyTail": json.dumps([json.dumps(rows[-1])]), "eventsTail": "[]",
            "logLineCount": 0, "eventsLineCount": 0, "tags": [], "wandbConfig": '{"t": 1}',
        }  # fmt: skip
        return {"model": {"id": "p", "name": project, "entity": {"id": "e", "name": "me"}, "bucket": bucket}}

    def CreateRunFiles(self, files, **_):
        place = f"http://127.0.0.1:{self.server.server_port}"
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": [
            {"name": name, "uploadUrl": f"{place}/{number}"} for number, name in enumerate(files)
        ]}}  # fmt: skip

    def Viewer(self, **_):
        return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def ServerFeaturesQuery(self, **_):
        return {"serverInfo": {"features": []}}

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.history, server.about = {}, []
    server.handle_error = lambda *_: None  # connections left by a killed run
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def without_tables():
    """Disable tables: they are artifacts, which the fake server does not accept."""
    from ccnet.engine.training.wandb_logger import WandbRun

    WandbRun.validation = lambda *_: None


def test_a_resumed_run_continues_its_wandb_run(server, tmp_path):
    environment = KEY | {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
    run = Run(
        tmp_path, *LOGGED, "recipe.max_iters=8", "logger.group=ablation", environment=environment, hook=without_tables
    )
    assert run.until(lambda: run.iteration >= 3), run.text
    run.signal(signal.SIGTERM)
    assert run.wait() == 75, run.text
    (name,) = server.history
    first = len(server.history[name])
    run = Run(
        tmp_path, *LOGGED, "recipe.max_iters=8", "logger.group=ablation", environment=environment, hook=without_tables
    )
    assert run.wait() == 0, run.text
    assert f"W&B: http://127.0.0.1:{server.server_port}/me/ccnet/runs/{name}" in run.text
    assert list(server.history) == [name]
    steps = [row["_step"] for row in server.history[name] if "train/loss" in row]
    assert 3 <= first < len(server.history[name])
    assert steps == list(range(1, 9))
    assert {about["groupName"] for about in server.about} - {None} == {"ablation"}
    assert "runs/new" in {about["displayName"] for about in server.about}


def test_a_signal_that_also_ends_wandb_loses_nothing(tmp_path):
    """Slurm sends the signal to all processes of a job."""
    run = Run(tmp_path, *LOGGED, "recipe.max_iters=60")
    assert run.until(lambda: run.iteration >= 3), run.text
    for pid in children(run.pid):
        os.kill(pid, signal.SIGTERM)
    run.signal(signal.SIGTERM)
    assert run.wait() == 75, run.text
    assert "Traceback" not in run.text
    assert newest(tmp_path / "runs" / "new").iteration >= 3


def test_without_a_network_a_run_continues_offline_after_the_timeout(tmp_path):
    environment = KEY | {"WANDB_BASE_URL": "http://127.0.0.1:9"}
    run = Run(tmp_path, *LOGGED, "logger.mode=online", environment=environment)
    assert run.wait() == 0, run.text
    (part,) = (tmp_path / "runs" / "new" / "wandb").glob("offline-run-*")
    assert run.text.count("W&B could not be reached, so this run is logged offline") == 1
    assert f"To upload it later: wandb sync {part}" in run.text


def test_a_lost_network_does_not_delay_the_run(server, tmp_path):
    environment = KEY | {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_HTTP_TIMEOUT": "1"}
    run = Run(tmp_path, *LOGGED, "recipe.val_every=4", environment=environment)
    assert run.until(lambda: server.history), run.text
    server.shutdown()
    server.server_close()
    assert run.wait() == 0, run.text
    assert "wandb sync" in run.text


def test_online_without_a_key_is_an_error_rather_than_a_prompt(tmp_path):
    run = Run(tmp_path, *LOGGED, "logger.mode=online", environment={"HOME": str(tmp_path)})
    assert run.wait() == 1
    assert "error: logger.mode=online, but W&B has no API key" in run.text


def test_the_runs_of_a_sweep_form_one_group_even_when_resumed(run_entry, tmp_path, monkeypatch):
    import wandb

    started, init = [], wandb.init

    def noted(**named):
        started.append((named["name"], named["group"]))
        return init(**named | {"mode": "disabled"})

    monkeypatch.setattr(wandb, "init", noted)
    command = ["train.py", "-m", *TINY, "recipe.max_iters=1", "logger=wandb", f"hydra.sweep.dir={tmp_path}/ablation"]
    run_entry(*command, "seed=0")
    run_entry(*command, "seed=0,1", "resume=auto")
    assert started == [(f"ablation/{number}", "ablation") for number in range(2)]


def test_offline_parts_of_a_run_are_merged_when_synchronised(server, tmp_path):
    for command in (Run(tmp_path, *LOGGED, "recipe.max_iters=8", hook=without_tables), None):
        run = command or Run(tmp_path, *LOGGED, "recipe.max_iters=8", hook=without_tables)
        if command:
            assert run.until(lambda: run.iteration >= 3), run.text  # noqa: B023
            run.signal(signal.SIGTERM)
        assert run.wait() == (75 if command else 0), run.text
    parts = sorted((tmp_path / "runs" / "new" / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    environment = os.environ | KEY | {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
    command = [sys.executable, "-m", "wandb", "sync", *parts]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=PATIENCE)
    (rows,) = server.history.values()
    assert [row["_step"] for row in rows if "train/loss" in row] == list(range(1, 9))
