"""Importing a package is cheap and finds this repository's packages rather than others of the same name."""

import importlib
import tomllib

import pytest
from conftest import ROOT, run_python

# What Windows lacks, as far as this package uses it.
WITHOUT_POSIX = """
import os, signal, sys

sys.modules |= {"fcntl": None, "resource": None}
del os.fork, os.register_at_fork, os.O_CLOEXEC, os.pwrite, os.posix_fallocate, os.sched_getaffinity
del signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGKILL, signal.pthread_sigmask, signal.sigwaitinfo
"""
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


def test_entry_points_import_what_they_need_to_start_without_posix():
    commands = ["app", "benchmark", "check_data", "evaluate", "export", "predict", "publish", "train"]
    code = WITHOUT_POSIX + "".join(f"import ccnet.{name}\n" for name in [*commands, "engine.sweeps.report"])
    run_python("-c", f"{code}sys.platform = 'win32'\nwith ccnet.engine.runtime.StopRequest(): pass")


@pytest.mark.parametrize("name", ["kernels.set_float32_precision", "losses.cross_entropy", "models.list_models"])
def test_public_packages_need_no_import_of_their_own(name):
    assert run_python("-c", f"import ccnet; print(callable(ccnet.{name}))").strip() == "True"
