"""A run writes no secrets from the environment to disk."""

import re
import subprocess

import pytest
from conftest import TINY, configured

from ccnet.engine.guards import check_run, plain, refuse_environment

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "zXcVbNmAsDfGhJkL/123",
    "HF_TOKEN": "hf_qWeRtYuIoP",
    "GITHUB_TOKEN": "ghp_aSdFgHjKl",
    "DB_PASSWORD": "correct horse",
}


@pytest.mark.slow
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
        ("+dataset.note=${oc.env:HF_TOKEN}", "dataset.note takes the value of the environment variable HF_TOKEN"),
        (
            "recipe.monitor=x-ghp_aSdFgHjKl-x",
            "recipe.monitor contains the value of the environment variable GITHUB_TOKEN",
        ),
        ("recipe.monitor=https://me:pass@host/x", "recipe.monitor contains a URL with a password"),
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


def refused(*options):
    """Return the options that :func:`refuse_environment` names, or those composed if it accepts them."""
    config = configured(*options)
    try:
        refuse_environment(config)
    except ValueError as error:
        found = re.match(r"(\S+) takes the value of the environment variable (\w+)", str(error))
        if found is None:
            raise
        return found.groups()
    return config


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["+dataset.note=${oc.env:LUNCH}"], ("dataset.note", "LUNCH")),
        (["+dataset.note=a-${oc.env:LUNCH}-b"], ("dataset.note", "LUNCH")),
        (["+note='${oc.decode:${oc.env:PIN}}'"], ("note", "PIN")),
        (["+dataset.note=[1,{a:${oc.env:LUNCH}}]"], ("dataset.note.1.a", "LUNCH")),
        (["+logger.tags=${oc.dict.values:oc.env}", "+oc.env={a:'${oc.env:LUNCH}'}"], ("logger.tags.0", "LUNCH")),
        (["logger.entity=${oc.env:LUNCH}", "allow_env=[PIN]"], ("logger.entity", "LUNCH")),
    ],
)
def test_an_option_with_a_value_from_the_environment_is_rejected_whatever_its_name(monkeypatch, options, found):
    monkeypatch.setenv("LUNCH", "soup")
    monkeypatch.setenv("PIN", "1234")
    assert refused(*options) == found


def test_values_from_the_environment_are_accepted_if_allowed_or_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("LUNCH", "soup")
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    assert refused("+a=${oc.env:LUNCH}", "+b=${a}", "allow_env=[LUNCH]").b == "soup"
    assert refused("+dataset.note=${oc.env:SCRATCH}/data").dataset.note == f"{tmp_path}/data"
    assert refused("+a=${oc.env:NOT_SET,default}").a == "default"
    allowed = refused("+a=${oc.env:HF_TOKEN}", "allow_env=[HF_TOKEN]")
    check_run(plain(allowed), tmp_path)
    with pytest.raises(ValueError, match="a contains the value of the environment variable HF_TOKEN"):
        check_run(plain(allowed) | {"allow_env": []}, tmp_path)
    with pytest.raises(ValueError, match="allow_env is 'LUNCH', but must be a list"):
        refused("allow_env=LUNCH")


def test_a_folder_named_after_the_environment_is_rejected(run_entry, tmp_path, monkeypatch):
    monkeypatch.setenv("LUNCH", "soup")
    done = run_entry("train.py", *TINY, "hydra.run.dir=${oc.env:LUNCH}", ok=False)
    assert "hydra.run.dir takes the value of the environment variable LUNCH" in done.stderr
    assert not list(tmp_path.rglob("*.*"))
