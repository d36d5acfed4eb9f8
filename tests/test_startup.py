"""Entry points start fast: they load torch and other slow modules only when needed."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow


SLOW = {"torch", "torchvision", "timm", "matplotlib", "numpy", "PIL", "jax", "wandb"}

# Run an entry point as a user does, then write the names of the loaded modules.
OBSERVED = """
import atexit, json, os, runpy, sys

def report():
    with open(os.environ["OBSERVED"], "w") as file:
        json.dump(sorted({name.partition(".")[0] for name in sys.modules}), file)

atexit.register(report)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__") if sys.argv[0].endswith(".py") else exec(sys.argv[0])
"""


def observed(tmp_path, *command):
    """Run a command in a new process; return it with the modules that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", OBSERVED, *map(str, command)],
        cwd=tmp_path, env=os.environ | {"OBSERVED": str(tmp_path / "seen")}, capture_output=True, text=True,
    )  # fmt: skip
    return done, json.loads((tmp_path / "seen").read_text())


@pytest.mark.parametrize(
    ("arguments", "answer", "code"),
    [
        (["--help"], "# decay of a moving average of the weights", 0),
        (["modle=ccnet"], "Could not override 'modle'", 1),
        (["model=ccnett"], "Could not find 'model/ccnett'", 1),
        (["dataset=camvid", "dataset.root=/nowhere"], "error: dataset.root=/nowhere is not a folder", 1),
    ],
)
def test_help_and_user_errors_do_not_load_torch(tmp_path, arguments, answer, code):
    done, modules = observed(tmp_path, ROOT / "train.py", *arguments)
    assert done.returncode == code
    assert answer in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert SLOW.isdisjoint(modules)


def test_the_report_of_a_sweep_does_not_load_torch(tmp_path):
    done, modules = observed(tmp_path, "import ccnet.engine.sweeps.report")
    assert done.returncode == 0
    assert not {"torch", "timm", "wandb"} & set(modules)
