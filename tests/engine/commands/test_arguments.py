"""Command-line arguments as people write them, before Hydra parses them."""

import pytest
from omegaconf import OmegaConf

from ccnet.engine.commands.arguments import accepted, check_overrides
from ccnet.engine.runtime.overrides import parse_overrides
from ccnet.models.factory import compose_conf


def test_a_config_group_needs_a_name():
    for override in ("model=null", "model=3", "+model=true", "protocol=[0,0]", "model=ccnet,null", "model=1,2"):
        with pytest.raises(
            ValueError, match=r"must be the name of a configuration, \+?(model=ccnet\||protocol=letterbox)"
        ):
            check_overrides([override])
    check_overrides(["model=a", "model=a,'b'", "model=glob(*)", "loss/term=[],dice,[dice,focal]", "+experiment=[a,b]"])
    check_overrides(["model={head:{recurrence:3}}", "model=(", "~model", "-m"])


def test_only_values_that_hydra_cannot_parse_are_quoted():
    for argument in (
        "input=a b.jpg", "x=1e-3", "x=[1,'ä']", "x={a:1}", "+x=a,b", "~x", "x=", "--help", "--config-dir=ä",
        "x='ä'", "x=${y}ä", "x=[ä", "x=choice(1,2)",
    ):  # fmt: skip
        assert accepted([argument, argument]) == [argument, argument]
    assert accepted(["+x=ä=b"]) == ["+x='ä=b'"]
    assert parse_overrides(accepted(["x=it's (ä)"])) == {"x": "it's (ä)"}


def test_names_that_look_like_numbers_stay_as_they_are():
    given = {"commit": "12e3456", "output": "1_000", "resume": "1.50", "input": "nan", "dataset.images": "1e3"}
    assert parse_overrides(accepted([f"{name}={text}" for name, text in given.items()])) == given
    assert parse_overrides(accepted(["x=1e3", "resume=false", "init=null"])) == {
        "x": 1000.0, "resume": False, "init": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("[Gebäude,grüne Wiese, 3 ,'A, B']", ["Gebäude", "grüne Wiese", 3, "A, B"]),
        ("[/a/IMG (1).jpg,/b c]", ["/a/IMG (1).jpg", "/b c"]),
        ("{0:ä,128 0 0:'b,',e:[ö,1e-3]}", {0: "ä", "128 0 0": "b,", "e": ["ö", 1e-3]}),
    ],
)
def test_items_of_lists_and_mappings_are_quoted(given, value):
    assert parse_overrides(accepted([f"x={given}"])) == {"x": value}


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (["dataset.images.val=a b"], {"dataset.images": {"val": "a b"}}),
        (["dataset.lists.train=/ä/it's,2"], {"dataset.lists": {"train": "/ä/it's,2"}}),
        (["dataset.images.train=a", "+dataset.images.val=b"], {"dataset.images": {"train": "a", "val": "b"}}),
        (["dataset.masks={train:a}", "dataset.masks.val=2026"], {"dataset.masks": {"train": "a", "val": 2026}}),
        (["dataset.masks=x", "dataset.masks.val=null"], {"dataset.masks": {"val": None}}),
        (["dataset.values.255=ignore", "dataset.values.7=1"], {"dataset.values": {255: "ignore", 7: 1}}),
        (["optimizer.lr_factors.backbone.net=0.1"], {"optimizer.lr_factors": {"backbone.net": 0.1}}),
    ],
)
def test_an_entry_of_a_mapping_can_be_set_by_its_dotted_name(given, options):
    assert parse_overrides(accepted(given)) == options
    config = compose_conf(["dataset=folder", *accepted(given)], "config")
    for name, value in options.items():
        assert OmegaConf.select(config, name) == value


def test_a_sweep_over_an_entry_of_a_mapping_keeps_the_other_entries():
    """Hydra composes each run with one value, such as ``++dataset.images.val=a``."""
    for given in (
        ["dataset.images.val=a,b", "dataset.images.train=c"],
        ["+dataset.images={train:c}", "dataset.images.val=a,b"],
    ):
        *others, swept = accepted(["dataset=folder", *given])
        assert swept == "++dataset.images.val=a,b"
        config = compose_conf([*others, swept.removesuffix(",b")], "config")
        assert config.dataset.images == {"train": "c", "val": "a"}


def test_flags_may_stand_anywhere():
    """argparse, by which Hydra reads its flags, calls overrides on both sides of a flag "unrecognized arguments"."""
    for flag in ("-m", "--multirun"):
        assert accepted(["dataset=camvid", flag, "model=fcn"]) == [flag, "dataset=camvid", "model=fcn"]
    given = ["a=1", "--config-dir", "-m", "b=2", "--cfg=job"]  # -m is the name of a folder here
    assert accepted(given) == ["--config-dir", "-m", "--cfg=job", "a=1", "b=2"]


def test_a_path_may_contain_commas_unless_they_separate_the_values_of_a_sweep(tmp_path, monkeypatch):
    """``hydra.sweep.subdir=${hydra.job.override_dirname}`` names the folders of runs after all their options."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    for path in ("a,b", "a,b/best", f"{tmp_path}/a,b", f"{tmp_path}/new,seed=0", "lr=1,seed=0"):
        assert parse_overrides(accepted([f"resume={path}"])) == {"resume": path}
        *_, folder = accepted(["-m", f"hydra.sweep.dir={path}"])
        assert parse_overrides([folder]) == {"hydra.sweep.dir": path}
    seeds = ",".join(map(str, range(100)))  # without -m, which Hydra reports; too long for the name of a file
    sweeps = (["-m", "init=a,b"], ["recipe.lr=0.1,0.2"], ["init=a/best,b/best"], ["seed=range(1,3)"])
    for sweep in (*sweeps, [f"seed={seeds}"]):
        assert accepted(sweep) == sweep
    assert accepted(["-m", "init=lr=1/best,straße,c"]) == ["-m", "init='lr=1/best','straße',c"]


def test_values_of_flags_are_not_quoted_and_backslashes_are_kept():
    assert accepted(["--config-dir", "a=b(1)", "x=b(1)"]) == ["--config-dir", "a=b(1)", "x='b(1)'"]
    for value in ("(a)\\", "(a)\\'b", "\\(a)\\\\'"):
        assert parse_overrides(accepted([f"x={value}"])) == {"x": value}
