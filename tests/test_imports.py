"""Importing a package is cheap and finds this repository's packages rather than others of the same name."""

import importlib
import tomllib

import pytest
from conftest import ROOT, run_python

PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_belong_to_this_repository(name):
    found = importlib.import_module(name).__file__
    folder = "/".join(name.split(".")[1:])
    assert found == str(ROOT / folder / "__init__.py"), f"{name} is {found}: a folder named ccnet hides this one"


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_a_package_loads_no_framework(name):
    code = f"import sys, {name}; print({{'torch', 'jax', 'flax', 'triton', 'timm', 'matplotlib'}} & {{*sys.modules}})"
    assert run_python("-c", code).strip() == "set()"


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_loads(name):
    if name.endswith("nnx"):
        pytest.importorskip("flax", reason="Flax is not installed: pip install -e '.[jax]'")
    package = importlib.import_module(name)
    folder = ROOT.joinpath(*name.split(".")[1:])
    for public in getattr(package, "__all__", ()):
        found = getattr(package, public)
        assert found is not None
        if name in ("ccnet.models", "ccnet.models.nnx", "ccnet.losses"):
            assert found.__module__.startswith(f"{name}."), public
            assert not (folder / f"{public}.py").exists(), f"{name}.{public} is a module and a public name"
