"""A run writes no secrets from the environment to disk."""

import subprocess

import pytest
from conftest import TINY

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "zXcVbNmAsDfGhJkL/123",
    "HF_TOKEN": "hf_qWeRtYuIoP",
    "GITHUB_TOKEN": "ghp_aSdFgHjKl",
    "DB_PASSWORD": "correct horse",
}


def test_a_run_writes_no_secrets_from_the_environment(run_entry, tmp_path, monkeypatch):
    """The git remote URL contains a token and the diff a password; W&B logs offline."""
    for command in (["init", "-q"], ["remote", "add", "origin", "https://ghp_remote:x-oauth-basic@github.com/x/y.git"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "settings.ini").write_text("password = diffsecret")
    subprocess.run(["git", "add", "settings.ini"], cwd=tmp_path, check=True)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    tiny = [part for part in TINY if part != "logger=none"]
    done = run_entry("train.py", *tiny, "recipe.max_iters=1", f"hydra.run.dir={tmp_path / 'run'}")
    written = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"last.pt", "best.safetensors", "config.yaml", "debug.log"} <= written.keys()
    assert any(name.endswith(".wandb") and b"OneCycleLR" in content for name, content in written.items())
    for name, content in (written | {"out": done.stdout.encode(), "err": done.stderr.encode()}).items():
        for secret in (*SECRETS.values(), "ghp_remote", "diffsecret"):
            assert secret.encode() not in content, name


def test_a_sweep_writes_no_secrets_from_its_command_line(run_entry, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    done = run_entry("train.py", "-m", *TINY, "+dataset.note=x,hf_qWeRtYuIoP", ok=False)
    assert "error: the command line contains the value of the environment variable HF_TOKEN" in str(done.returncode)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("+dataset.note=${oc.env:HF_TOKEN}", "dataset.note contains the value of the environment variable HF_TOKEN"),
        ("+dataset.note=x-ghp_aSdFgHjKl-x", "dataset.note contains the value of the environment variable GITHUB_TOKEN"),
        ("+dataset.note=https://me:pass@host/x", "dataset.note contains a URL with a password"),
        ("hydra.run.dir=hf_qWeRtYuIoP", "the folder contains the value of the environment variable HF_TOKEN"),
    ],
)
def test_a_secret_in_the_configuration_is_rejected(run_entry, tmp_path, monkeypatch, option, message):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    done = run_entry("train.py", *TINY, option.replace("https:", "'https:") + ("'" if "https" in option else ""),
                     ok=False)  # fmt: skip
    assert message in done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS.values())
    assert not list(tmp_path.rglob("*.pt"))
