"""Entry points start fast: they load torch and other slow modules only when needed."""

import json

import pytest
from conftest import ROOT, run_python

pytestmark = pytest.mark.slow


SLOW = {"torch", "torchvision", "timm", "matplotlib", "numpy", "PIL", "jax", "wandb"}

# Run one command line after the other as a user does, and print how each ended and which modules it has loaded.
OBSERVED = """
import io, json, runpy, sys
from contextlib import redirect_stderr, redirect_stdout

ended = []
for command in json.loads(sys.argv[1]):
    sys.argv = command
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(out):
        try:
            runpy.run_path(command[0], run_name="__main__")
            code = 0
        except SystemExit as exit_:
            code = exit_.code
    ended.append((bool(code), f"{out.getvalue()} {code}", sorted({name.partition(".")[0] for name in sys.modules})))
import ccnet.engine.sweeps.report
print(json.dumps([ended, sorted({name.partition(".")[0] for name in sys.modules})]))
"""

COMMANDS = [
    (["modle=ccnet"], "Could not override 'modle'"),
    (["model=ccnett"], "Could not find 'model/ccnett'"),
    (["dataset=camvid", "dataset.root=/nowhere"], "error: dataset.root=/nowhere is not a folder"),
    (["--help"], "# decay of a moving average of the weights"),  # after which Hydra runs no other command
]


def test_help_user_errors_and_the_report_of_a_sweep_do_not_load_torch(tmp_path):
    commands = [[str(ROOT / "train.py"), *arguments] for arguments, _ in COMMANDS]
    ended, after_report = json.loads(run_python("-c", OBSERVED, json.dumps(commands), cwd=tmp_path))
    for (arguments, answer), (failed, printed, modules) in zip(COMMANDS, ended, strict=True):
        assert failed == (arguments != ["--help"])
        assert answer in printed
        assert "Traceback" not in printed
        assert SLOW.isdisjoint(modules), arguments
    assert not {"torch", "timm", "wandb"} & set(after_report)
