"""The wheel contains the whole package and nothing else, and the installed package runs from any folder."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import partial
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT, TINY, forked, run_python

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Return the tracked files of the repository, relative to its root."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("compares the package with the files that git tracks")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked, tmp_path_factory) -> Path:
    """Build the wheel in a copy, because setuptools leaves a ``build`` folder in the source tree."""
    pytest.importorskip("setuptools", "77", reason="pip install 'setuptools>=77'")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tracked:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"  # as pip calls it
    run_python("-c", build, built, cwd=source)
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Unpack the wheel into its own folder, as pip would."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def python(installed, tmp_path):
    """Return a function that runs Python in an empty folder, with the installed package instead of this repository."""
    return partial(run_python, cwd=tmp_path, PYTHONPATH=str(installed), WANDB_MODE="offline")


def test_every_package_is_listed(tracked):
    folders = {path.parent.parts for path in tracked if path.name == "__init__.py"}
    assert {".".join(["ccnet", *parts]) for parts in folders} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_hints_to_install_an_extra_name_this_project(tracked):
    # PyPI's `ccnet` is another package, which `pip install 'ccnet[app]'` would install.
    sources = [path for path in tracked if path.suffix in (".py", ".yaml", ".md") and path.parts[0] != "tests"]
    text = "\n".join((ROOT / path).read_text() for path in sources)
    hints = re.findall(r"pip install (?:-e )?'([\w.-]*)\[([\w,]+)\]'", text)
    assert len(hints) > 10
    assert {name for name, _ in hints} == {".", PROJECT["project"]["name"]}
    assert {extra for _, extras in hints for extra in extras.split(",")} <= set(
        PROJECT["project"]["optional-dependencies"]
    )


def test_citation_has_the_current_version():
    (version,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "__init__.py").read_text(), flags=re.MULTILINE)
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_wheel_holds_the_package_files(wheel, tracked):
    packages = {path.parent for path in tracked if path.name == "__init__.py"}

    def belongs(path: Path) -> bool:
        if path.suffix == ".yaml":
            return path.parts[0] == "conf"
        if path.parts[:2] == ("models", "pretrained"):
            return len(path.parts) == 4
        inside = path.parent in packages or (path.parent.parent in packages and path.parent.name == "configs")
        return inside and (path.suffix in (".py", ".pyi", ".json") or path.name == "py.typed")

    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name) for name in archive.namelist()}
    assert {path for path in held if not path.parts[0].endswith(".dist-info")} == {
        "ccnet" / path for path in tracked if belongs(path)
    }


def test_importing_the_package_loads_no_framework(python, installed):
    found = python(
        "-c", "import ccnet, sys; assert not {'torch', 'jax', 'timm'} & {*sys.modules}; print(ccnet.__file__)"
    )
    assert Path(found.strip()) == installed / "ccnet" / "__init__.py"


def test_common_top_level_names_stay_free(python):
    names = ["kernels", "models", "losses", "data", "engine", "benchmarks", "conf", "train"]
    python("-c", f"from importlib.util import find_spec; assert not any(map(find_spec, {names}))")


def test_console_scripts_exist(python):
    python(
        "-c",
        "from importlib.metadata import entry_points\n"
        "scripts = [script for script in entry_points(group='console_scripts') if script.value.startswith('ccnet.')]\n"
        f"assert {{script.name for script in scripts}} >= {set(PROJECT['project']['scripts'])}\n"
        "assert all(callable(script.load()) for script in scripts)",
    )


def use(site):
    """Replace this repository's package, which the server of `forked` has imported, by the one in `site`."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "ccnet"]:
        del sys.modules[name]
    sys.path.insert(0, str(site))
    assert Path(importlib.import_module("ccnet.engine").__file__).is_relative_to(site)


@pytest.mark.slow
def test_training_writes_to_the_working_directory(tmp_path, installed):
    before = {path for path in installed.rglob("*") if "__pycache__" not in path.parts}
    script = installed / "ccnet" / "train.py"
    arguments = [*TINY, "recipe.max_iters=1"]
    run = forked(script, arguments, output=tmp_path / "printed", cwd=tmp_path, hook=partial(use, installed))
    run.join(PATIENCE)
    assert run.exitcode == 0, (tmp_path / "printed").read_text()
    assert len(list(tmp_path.glob("outputs/ccnet_synthetic/*/best.safetensors"))) == 1
    assert {path for path in installed.rglob("*") if "__pycache__" not in path.parts} == before
