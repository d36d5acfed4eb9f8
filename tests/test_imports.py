"""The packages have generic names: the ones in this repository must be the ones that are found."""

import importlib
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("name", ["kernels", "models", "losses", "data", "engine"])
def test_packages_are_this_repositorys(name):
    found = importlib.import_module(f"ccnet.{name}").__file__
    assert found == str(ROOT / name / "__init__.py"), f"{name} is {found}: run from the root of the repository"


def test_importing_kernels_loads_no_framework():
    code = "import sys, ccnet.kernels; print([name for name in ('torch', 'jax', 'triton') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
