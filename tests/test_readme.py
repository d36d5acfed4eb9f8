"""What the README shows runs: its Python as it stands, its commands up to the training itself."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

README = (ROOT / "README.md").read_text()
# Each composes the configuration of its own name.
CONFIGS = {"train": "config"}


def commands():
    lines = re.findall(
        r"^(?: {4})?(python (?:\w+\.py|-m \w+\.\w+).*?)(?:\s{2,}#.*)?$", README.replace("\\\n", " "), flags=re.MULTILINE
    )
    return sorted({line for line in lines if "--help" not in line})


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_python_runs(block):
    if "jax" in block:
        pytest.importorskip("jax", reason="pip install '.[jax]'")
    exec(block, {})


@pytest.mark.parametrize("command", commands())
def test_commands_compose(command):
    _, script, *overrides = shlex.split(command)
    if script == "-m":  # python export.py
        script = overrides.pop(0).replace(".", "/") + ".py"
    assert (ROOT / script).is_file()
    name = Path(script).stem
    if name == "report":  # takes a folder and no configuration
        return
    # Of a sweep's values, the first; the sweep itself is tested in test_train.py.
    sweep = "-m" in overrides
    overrides = [part.split(",")[0] if sweep else part for part in overrides if part != "-m"]
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        compose(CONFIGS.get(name, name), overrides=overrides)


def test_tree_names_what_is_there():
    tree = re.search(r"```text\n(.*?)```", README, flags=re.DOTALL).group(1)
    names = [word for line in tree.splitlines() for word in line.split("  ")[0].split()]
    assert len(names) > 8
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_zoo_table_is_the_measured_one():
    from ccnet.benchmarks.zoo import markdown

    with open(ROOT / "results" / "networks_zoo.csv") as file:
        assert markdown(list(csv.DictReader(file))) in README
