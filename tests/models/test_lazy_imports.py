"""Lazy imports of models and losses: every public name exists, and no framework is imported before it is needed."""

import importlib
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGES = ["ccnet.models", "ccnet.models.nnx", "ccnet.losses"]


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_the_package_imports_no_framework(package):
    code = f"import sys, {package}; print([name for name in ('torch', 'timm', 'jax', 'flax') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_resolves_to_a_class_or_function_of_the_package(package):
    if package.endswith("nnx"):
        pytest.importorskip("flax", reason="Flax is not installed: pip install -e '.[jax]'")
    module = importlib.import_module(package)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name).__module__.startswith(f"{package}."), name
        folder = ROOT / package.removeprefix("ccnet.").replace(".", "/")
        assert not (folder / f"{name}.py").exists(), f"{package}.{name} is a module and a public name"
