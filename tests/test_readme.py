"""The examples in README.md, docs/ and results/ work: Python blocks run, commands compose, every named file exists."""

import re
import shlex
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT, configured
from omegaconf import OmegaConf

from ccnet.benchmarks.jax_backbones import markdown
from ccnet.engine.checkpoints.export import export_onnx
from ccnet.engine.drawing.tables import read_records
from ccnet.models import create_model
from ccnet.models.factory import build

FILES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *ROOT.glob("docs/*.md")]
FILES += [*ROOT.glob("results/*.md"), ROOT / "models" / "pretrained" / "README.md"]
PAGES = {("pretrained.md" if "models" in page.parts else page.name): page.read_text() for page in FILES}
FOLDERS = dict(zip(PAGES, (page.parent for page in FILES), strict=True))
# Entry points whose configuration has a different name.
CONFIGS = {"train": "config"}
_COMMAND = re.compile(r"^ {4}(?:[A-Z_]+=\S+ )*((?:python|torchrun) .*?)(?:\s{2,}#.*)?$", flags=re.MULTILINE)
_SWEPT = re.compile(r",(?![^\[{]*[\]}])")  # a comma outside a list and a mapping


def commands() -> list[str]:
    lines = [line for text in PAGES.values() for line in _COMMAND.findall(text.replace("\\\n", " "))]
    return sorted({" ".join(line.split()) for line in lines if "--help" not in line})


def python_blocks() -> list:
    return [
        pytest.param(
            block, id=f"{page}-{number}", marks=[pytest.mark.slow] if re.search("jax|train|onnx", block) else []
        )
        for page, text in PAGES.items()
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    ]


@pytest.mark.parametrize("block", python_blocks())
def test_python_runs(block, folder_data, tmp_path, monkeypatch):
    """A block runs in a folder with `images` and `masks` of three classes, and trains for one iteration.

    A block that reads `network.onnx` finds an exported network and `photo.jpg` there.
    """
    for module, extra in (("jax", "jax"), ("equinox", "dev"), ("onnxruntime", "export")):
        if module in block:
            pytest.importorskip(module, reason=f"pip install 'ccnet-segmentation[{extra}]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what a block makes there stays, 25 MB in one case
    if "network.onnx" in block:
        network = create_model("fcn", num_classes=3, backbone="beacons", head__channels=8).eval()
        export_onnx(network, Path("network.onnx"), classes=["road", "car", "sky"], size=(48, 64))  # of the photo
        shutil.copy("images/0.jpg", "photo.jpg")
    block = re.sub(r"max_iters=\d+", "max_iters=1", block)
    block = re.sub(r'"resnet\d+t?", framework="jax"', '"beacons", framework="jax"', block)  # half of the stages
    block = block.replace("backbone=resnet18", "backbone=beacons")
    exec(block.replace('"logger=none"', '"logger=none", "num_workers=0"'), {})  # workers would import torch anew


def test_the_example_of_a_head_builds_a_network(monkeypatch):
    """CONTRIBUTING.md replaces `head` in a copy of fcn.yaml."""
    module = ModuleType("ccnet.models.heads.foo")
    code, head = (
        re.search(rf"```{kind}\n(.*?)```", PAGES["CONTRIBUTING.md"], flags=re.DOTALL)[1] for kind in ("python", "yaml")
    )
    exec(code, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("ccnet.models.heads.foo", module, raising=False)
    config = configured("num_classes=5", "model=fcn")
    node = OmegaConf.merge({key: value for key, value in config.model.items() if key != "head"}, OmegaConf.create(head))
    node = {"model": node, **{key: config[key] for key in ("backbone", "num_classes", "recipe")}}
    network = build(OmegaConf.create(node).model)
    assert type(network.head).__name__ == "FooHead"
    assert network.eval()(torch.rand(1, 3, 33, 41))["out"].shape == (1, 5, 33, 41)


def unmatched_keywords(words: list[str]) -> list[str]:
    """Return the keywords of pytest's -k that match no test in the files or folders that are named before it."""
    paths = [ROOT / word for word in words if word.startswith("tests")]
    assert all(path.exists() for path in paths)
    modules = [module for path in paths for module in (path.rglob("test_*.py") if path.is_dir() else [path])]
    tests = [name for module in modules for name in (module.stem, *re.findall(r"def (test_\w+)", module.read_text()))]
    keywords = re.findall(r"\w+", words[words.index("-k") + 1]) if "-k" in words else []
    keywords = [word for word in keywords if word not in ("and", "or", "not", "foo")]  # foo: the reader's own network
    return [word for word in keywords if not any(word in test for test in tests)]


@pytest.mark.parametrize("command", commands())
def test_commands_compose(command):
    program, *words = shlex.split(command)
    if program == "torchrun":
        words = [word for word in words if not word.startswith("--")]
    if words[:2] == ["-m", "pytest"]:
        assert unmatched_keywords(words[2:]) == []
        return
    if words[0] == "-m":
        module = words[1].removeprefix("ccnet.").replace(".", "/")
        assert (ROOT / f"{module}.py").is_file()
        return
    script, *overrides = words
    assert (ROOT / script).is_file()
    name = Path(script).stem
    # Only the first value of a sweep; test_sweep_runs.py tests the sweeps themselves.
    overrides = [_SWEPT.split(part)[0] for part in overrides if part != "-m"]
    configured(*overrides, name=CONFIGS.get(name, name))


def test_commands_are_found():
    assert len(commands()) > 40


@pytest.mark.parametrize("page", PAGES)
def test_links_point_to_existing_files(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[page])
    missing = [target for target in targets if "://" not in target and not (FOLDERS[page] / target).exists()]
    assert missing == []


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_point_to_existing_headings(page):
    for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", PAGES[page]):
        target = (FOLDERS[page] / file).read_text(encoding="utf-8") if file else PAGES[page]
        assert anchor in anchors(target), f"{file}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_code_exist(page):
    rooms = "benchmarks|conf|data|docs|engine|kernels|losses|models|results|tests"
    paths = re.findall(rf"`((?:{rooms})/[\w/.*-]*)`", PAGES[page])
    # foo stands for a file that the reader would add.
    assert [path for path in paths if "/foo." not in path and not any(ROOT.glob(path.rstrip("/")))] == []


@pytest.mark.parametrize("page", PAGES)
def test_extras_exist(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for group in re.findall(r"[`'\"]\.\[([\w,]+)\]", PAGES[page]) for extra in group.split(",")}
    named |= {extra for line in re.findall(r"other extras: ([\w, ]+)", PAGES[page]) for extra in line.split(", ")}
    assert named <= extras.keys()


def test_readme_stays_short():
    assert len(PAGES["README.md"].splitlines()) <= 160


def test_the_zoo_table_matches_the_measurements():
    columns = ("network", "parameters_m", "gflops", "added_gflops", "saved_mb", "added_mb", "images_per_s")
    rows = read_records(ROOT / "results" / "networks_zoo.csv")
    measured = [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]
    lines = PAGES["README.md"].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| network |")) + 2
    assert lines[start : start + len(measured)] == measured
    assert not lines[start + len(measured)].startswith("|")


def test_the_list_of_jax_backbones_matches_the_measurements():
    rows = read_records(ROOT / "results" / "networks_jax_backbones.csv")
    assert markdown(rows) in PAGES["jax.md"]
    assert {row["outcome"] for row in rows} <= {"agrees", "refused", "too large"}
    compared = sum(row["outcome"] != "too large" for row in rows)
    assert f"{compared} of the {len(rows)}" in " ".join(PAGES["jax.md"].split())
