"""``--help`` lists every option with its comment."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from ccnet.evaluate import _USED as USED

CHOICES = ["dataset=folder", "backbone=resnet18", "loss=ce_ccl", "loss/term=[dice,focal]"]


@pytest.fixture
def help_of(run_entry):
    def shown(*arguments):
        return run_entry(*arguments, "--help").stdout

    return shown


def options_of(text):
    """Return {dotted option: comment} of the configuration in a help text."""
    found, parents = {}, []
    for line in text.partition("== Config ==")[2].splitlines():
        if match := re.match(r"( *)(\w+):(?:.*?  # (.+))?", line):
            depth = len(match[1]) // 2
            parents = [*parents[:depth], match[2]]
            found[".".join(parents)] = match[3]
    return found


def test_only_what_a_command_accepts_is_offered(help_of):
    """Hydra lists every group for every command, although `export.py model=fcn` is an error."""
    text = help_of("predict.py").partition("== Config ==")[0]
    assert re.findall(r"^([\w/]+): ", text, re.MULTILINE) == ["protocol"]
    assert "groups" not in help_of("export.py")
    header = OmegaConf.load(ROOT / "conf" / "evaluate.yaml").hydra.help.header
    assert set(re.findall(r"\w+", header.partition("can be set:")[2])) == set(USED)


def test_a_reader_that_stops_early_gets_no_traceback():
    """As in ``python train.py --help | head``."""
    with subprocess.Popen(
        [sys.executable, "train.py", "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_the_users_own_files_are_listed_with_their_comments(help_of, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "foo.yaml").write_text("defaults: [fcn, _self_]\nwidth: 3  # of foo\n")
    text = help_of("train.py", "--config-dir", tmp_path, "model=foo")
    assert re.search("^model: ccnet, .*, fcn, foo, gcn, ", text, re.MULTILINE)
    options = options_of(text)
    assert options["model.width"] == "of foo"
    assert options["model.head.recurrence"].startswith("R, the number of times")  # of the file that it includes


@pytest.mark.slow
def test_what_people_ask_for_is_listed_with_the_comments_of_the_chosen_files(help_of):
    text = help_of("train.py", *CHOICES)
    options, groups = options_of(text), set(re.findall(r"^([\w/]+): ", text.partition("== Config ==")[0], re.MULTILINE))
    page = (ROOT / "docs" / "training.md").read_text().partition("## Common requests")[2]
    wishes = page.partition("These are deliberately not supported")[0]
    asked = re.findall(r"`([a-z_]+(?:[./][a-zA-Z_]+)+(?=[=`])|[a-z_]+(?==))", wishes)
    assert {"ema", "backbone.in_channels", "loss.ramp.TERM", "loss/term", "loss", "dataset.values"} <= set(asked)
    for name in asked:
        assert name in groups or options[name.removesuffix(".TERM")], name

    assert options["dataset.value_range"].startswith("values of black and white in grey images")
    assert options["backbone.weights"].startswith("a state dict of the same timm model")  # of an included file
    assert options["loss.terms.ccl.distance"].startswith("or quadratic")
    assert options["loss.ramp.ccl"].startswith("such as 1000") and options["loss.ramp"].startswith("iterations over")
    assert "images: ${dataset.images}\n" in text
    assert options_of(help_of("predict.py"))["compare_rows"] == "maximum number of images in comparison.png"
