"""Classes of a user's own package are used only with permission, in a run as well as in its checkpoints."""

import pytest
from conftest import TINY, composed
from untrusted_files import small_config, stranger

from ccnet.engine import checkpoints
from ccnet.engine.guards import check_run, plain
from ccnet.engine.guards.allowed_targets import check_loadable
from ccnet.train import run

OWN = """
from ccnet.models.backbone import nn
from ccnet.models.heads.fcn import FCNHead


class Head(FCNHead):
    pass


def transform(crop_size):
    return lambda image, labels: (image, labels)


def uncropped():
    return transform(None)
"""
HEAD = "model.aux_head._target_=own_package.Head"


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    (tmp_path / "own_package.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CCNET_TRUSTED_PACKAGES", raising=False)


@pytest.mark.usefixtures("own_package")
def test_a_run_refuses_a_class_that_its_checkpoints_could_not_name(tmp_path):
    with pytest.raises(ValueError, match=r"model uses own_package\.Head.* CCNET_TRUSTED_PACKAGES=own_package, now"):
        run(*TINY, HEAD, folder=tmp_path / "run")


@pytest.mark.usefixtures("own_package")
def test_the_refusal_names_every_package_to_trust(tmp_path, monkeypatch):
    (tmp_path / "second.py").write_text(OWN)
    config = {"model": {"_target_": "own_package.Head"}, "loss": {"_target_": "second.Head"}}
    both = r"^model uses own_package\.Head and loss uses second\.Head, .*_PACKAGES=own_package,second, now"
    with pytest.raises(ValueError, match=both):
        check_loadable(config)
    monkeypatch.setenv("CCNET_TRUSTED_PACKAGES", "third, own_package")
    with pytest.raises(ValueError, match=r"^loss uses second\.Head, .*_PACKAGES=third,own_package,second, now"):
        check_loadable(config)


@pytest.mark.usefixtures("own_package")
def test_a_class_that_trusting_its_package_would_not_allow(tmp_path, monkeypatch):
    monkeypatch.setenv("CCNET_TRUSTED_PACKAGES", "own_package")
    with pytest.raises(ValueError, match=r"name it by the module that defines it, torch\.nn\.modules\.linear$"):
        check_loadable({"model": {"head": {"_target_": "own_package.nn.Linear"}}})
    with pytest.raises(ValueError, match=r"model uses 'own_package\.Haed', which cannot be loaded: "):
        run(*TINY, "model.aux_head._target_=own_package.Haed", folder=tmp_path / "run")


@pytest.mark.usefixtures("own_package")
def test_a_trusted_package_is_allowed_in_runs_and_in_their_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("CCNET_TRUSTED_PACKAGES", "another, own_package")
    config = plain(composed(HEAD, "num_classes=4"))
    check_run(config, tmp_path)
    path = stranger(tmp_path / "last.pt", config)
    checkpoints.load(path)
    monkeypatch.setenv("CCNET_TRUSTED_PACKAGES", "another")
    with pytest.raises(ValueError, match=r"names .own_package\.Head. in model.* own packages, named in CCNET_TRUSTED"):
        checkpoints.load(path)


@pytest.mark.usefixtures("own_package")
@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("own_package.transform", True),
        ("own_package.nn.Linear", False),  # imported, not defined there
        ("own_package_two.Head", False),
        ("own_package", False),
        ("os.system", False),
    ],
)
def test_only_what_a_trusted_package_defines_is_trusted(tmp_path, monkeypatch, target, allowed):
    monkeypatch.setenv("CCNET_TRUSTED_PACKAGES", "own_package")
    path = stranger(tmp_path / "last.pt", small_config() | {"recipe": {"train_transform": {"_target_": target}}})
    if allowed:
        checkpoints.load(path)
    else:
        with pytest.raises(ValueError, match="is not an allowed target"):
            checkpoints.load(path)


@pytest.mark.usefixtures("own_package")
def test_a_transform_without_a_crop_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CCNET_TRUSTED_PACKAGES", "own_package")
    with pytest.raises(
        ValueError, match=r"recipe\.train_transform has no crop_size=\[H,W\].* give your transform this"
    ):
        run(*TINY, "~recipe.train_transform", "+recipe.train_transform._target_=own_package.uncropped", folder=tmp_path)
