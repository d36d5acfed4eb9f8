"""Importing a package is cheap and finds this repository's packages rather than others of the same name."""

import importlib
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_belong_to_this_repository(name):
    found = importlib.import_module(name).__file__
    folder = "/".join(name.split(".")[1:])
    assert found == str(ROOT / folder / "__init__.py"), f"{name} is {found}: a folder named ccnet hides this one"


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_a_package_loads_no_framework(name):
    code = f"import sys, {name}; print({{'torch', 'jax', 'triton', 'timm', 'matplotlib'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_loads(name):
    package = importlib.import_module(name)
    for public in getattr(package, "__all__", ()):
        assert getattr(package, public) is not None
