"""An option on the command line that has no effect is refused, or a run warns of it."""

import re

import pytest
from conftest import TINY

from ccnet.engine.commands.unread_options import refuse_unread, without_effect
from ccnet.engine.runtime import as_command_line
from ccnet.models.factory import compose_conf
from ccnet.train import run


def refuse(*overrides, name="config"):
    with as_command_line(overrides):
        refuse_unread(compose_conf([*overrides], name), name)


@pytest.mark.parametrize(
    ("added", "similar"),
    [
        ("+bf_16=true", "bf16"),
        ("++bf_16=true", "bf16"),
        ("+recipe.max_iter=3", "recipe.max_iters"),
        ("+dataset.clases=3", "dataset.classes"),
        ("+recipe.head={chanels:3}", "recipe.head.channels"),
        ("+recipe.warmup=500", None),  # of another recipe and optimiser
    ],
)
def test_an_added_option_that_nothing_reads_is_refused(added, similar):
    option = added.lstrip("+").partition("=")[0].removesuffix("={") + (".chanels" if "{" in added else "")
    meant = f": did you mean {similar}" if similar else r"\."
    with pytest.raises(ValueError, match=f"^There is no option {option}{meant}"):
        refuse("dataset=folder", added)


def test_every_command_refuses_them():
    for name in ("predict", "benchmark"):
        with pytest.raises(ValueError, match="There is no option num_worker"):
            refuse("+num_worker=2", name=name)


@pytest.mark.parametrize("added", ["+model=fcn", "+model/context=rcca", "+protocol=slide"])
def test_an_added_group_that_the_command_does_not_read_is_refused(added):
    """Hydra's message for ``export.py model=fcn`` proposes +model=fcn, as if the checkpoint did not determine it."""
    with pytest.raises(ValueError, match=f"^{re.escape(added)} adds settings that this command does not read: remove"):
        refuse(added, name="export")


def test_an_added_option_that_something_reads_is_accepted():
    refuse(
        "dataset=folder", "optimizer=sgd_steps", "+recipe.warmup=500", "+recipe.steps=[7]",  # by interpolations
        "+recipe.base_batch_size=2", "+optimizer.lr_factors.bias=2",  # by name
        "+recipe.train_transform.short_sides=[3]", "+model.head.negative_slope=0.01", "+backbone.typo=1",  # by a class,
        "+dataset.extra={_target_:ccnet.data.sets.folder.Folder,split:all}",  # whose arguments are checked elsewhere
        "++bf16=true", "+experiment=contexts/gcn", "loss/term=[dice]", "++dataset.images.val=DIR",
    )  # fmt: skip
    refuse("+machines.GPU={teraflops:1}", name="benchmark")


def test_options_of_a_users_own_files_are_accepted(tmp_path, monkeypatch):
    """A user's file may hold options for other programs, which the command line can then set."""
    config = compose_conf([], "config")
    with as_command_line(["note=b"]):
        refuse_unread(type(config)({**config, "note": "b"}), "mine")
    with as_command_line(["+note=b"]), pytest.raises(ValueError, match=r"^\+note adds an option that nothing reads"):
        refuse_unread(type(config)({**config, "note": "b"}), "mine")


@pytest.mark.parametrize(
    ("overrides", "ignored"),
    [
        (["model=ce2p", "backbone.output_stride=8", "backbone.in_channels=4"], ["backbone.output_stride"]),
        (["model=pspnet", "recipe.head.gamma=fixed", "recipe.head.channels=8"], ["recipe.head.gamma"]),
        (["dataset=folder", "dataset.classes=[a,b]", "dataset.flip_pairs=[[0,1]]", "dataset.images=DIR"], []),
        (["published.recurrence=1"], ["published.recurrence"]),
        (["published.recurrence=1", "init=FILE.pth"], []),
        (["backbone.output_stride=8", "recipe.lr=1", "dataset.size=65", "dataset.train.length=8"], []),
    ],
)
def test_options_without_effect_in_this_combination_are_named(overrides, ignored):
    with as_command_line(overrides):
        lines = without_effect(compose_conf(overrides, "config"))
    assert [line.partition(" has no effect")[0] for line in lines] == ignored


def test_the_number_of_classes_cannot_be_set(tmp_path):
    with pytest.raises(ValueError, match="num_classes cannot be set, because it follows from the data set"):
        run(*TINY, "num_classes=7", folder=tmp_path / "run")


@pytest.mark.slow
def test_a_run_warns_of_an_option_without_effect(tmp_path, capsys):
    run(*TINY, "recipe.max_iters=1", "model=fcn", "recipe.head.gamma=fixed", folder=tmp_path / "run")
    assert "warning: recipe.head.gamma has no effect" in capsys.readouterr().out
