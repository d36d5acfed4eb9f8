"""Run everything that needs a GPU as independent steps: a failure or timeout ends only the step, not the session."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from ..engine.drawing.tables import Table, read_records
from ..engine.runtime.provenance import provenance
from ..kernels.launches import tile_tables
from .variants.race import VARIANTS, runs_variants

ROOT = Path(__file__).parent.parent
# The operator's shapes; the first is also timed in JAX.
SHAPES = ("8x97x97", "8x128x256", "1x97x97")
# Options whose time and memory are compared with those of the plain network.
OPTIONS = "ccnet,'ccnet grad_checkpointing=true','ccnet ema=0.999'"
DONE, TAIL = "done", 30
# A step is done only for these; results of another GPU or commit are measured again.
PROVENANCE = ("machine", "torch", "triton", "commit")


class Step(NamedTuple):
    """One step of a session.

    Attributes:
        name: the name by which users select the step (``gpu.steps``).
        arguments: the arguments of the Python interpreter.
        seconds: the time limit.
    """

    name: str
    arguments: Sequence[str]
    seconds: float


class Outcome(NamedTuple):
    """The outcome of a step.

    Attributes:
        step: its name.
        status: "done", or the reason why the step is not done.
        seconds: how long it took.
        log: the file with its output.
    """

    step: str
    status: str
    seconds: float
    log: str


def run_session(config: DictConfig, device: torch.device) -> str:
    """Run the steps and return a table of them; all results and logs are written to the folder ``output``.

    Steps that the folder records as done, on this GPU and at this commit, are skipped unless ``gpu.steps`` names them.

    Raises:
        ValueError: the device is not a GPU, or a step does not exist.
        SystemExit: a step failed or was not reached; the table is printed first.
    """
    if device.type != "cuda":
        raise ValueError(f"mode=gpu measures on a GPU, but the device is {device}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running step is killed too
    folder = Path(config.output).absolute()
    about = {name: value.removesuffix("-dirty") for name, value in provenance(device).items()}  # tuning writes a file
    wanted = chosen(steps(folder, races=runs_variants(device)), config.gpu.steps, folder, about)
    if not wanted:
        return f"every step is done: delete {folder / 'steps.csv'}, or name steps in gpu.steps, to run them again"
    outcomes = run_steps(wanted, folder, 60 * config.gpu.minutes, about)
    table = Table.of_records([{**outcome._asdict(), "seconds": round(outcome.seconds)} for outcome in outcomes]).text()
    if any(outcome.status != DONE for outcome in outcomes):
        print(table)
        raise SystemExit(1)
    return table


def steps(folder: Path, *, races: bool = True) -> list[Step]:
    """Return all steps in order of importance: correctness, the operator, kernels on trial, tiles, networks.

    Args:
        folder: where the steps write their results.
        races: whether to race the kernels on trial.
    """

    def benchmark(name: str, seconds: float, *overrides: str) -> Step:
        return Step(name, ("-m", "ccnet.benchmark", *overrides), seconds)

    def shape(text: str) -> str:
        return f"shape=[{text.replace('x', ',')}]"

    tests = [str(ROOT / "tests" / name) for name in ("kernels/test_gpu.py", "engine/training/test_step.py")]
    operator, bfloat16 = f"output={folder}/attention", "dtype=bfloat16"
    return [
        benchmark("compile", 240, "mode=compile"),
        Step("tests", ("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--durations=5", *tests), 360),
        *(benchmark(f"operator-{text}", 180, shape(text), bfloat16, operator) for text in SHAPES),
        *(
            benchmark(f"race-{name}", 90, "mode=race", f"race.variants=[{name}]", f"output={folder}/kernels")
            for name in (VARIANTS if races else ())
        ),
        benchmark("tune", 360, "mode=tune", "tune.dtypes=[bfloat16]", "tune.minutes=5.5", f"output={folder}/kernels"),
        *(
            benchmark(f"tuned-{text}", 90, shape(text), bfloat16, "peers=[triton]", f"{operator}_tuned")
            for text in SHAPES
        ),
        benchmark("train", 300, "mode=train", f"output={folder}/step"),
        benchmark("options", 180, "mode=train", f"train.models=[{OPTIONS}]", f"output={folder}/options"),
        benchmark("complexity", 120, "mode=complexity", operator),
        benchmark("zoo", 240, "mode=zoo", f"output={folder}/networks"),
        benchmark(f"jax-{SHAPES[0]}", 180, "framework=jax", shape(SHAPES[0]), bfloat16, operator),
    ]


def chosen(every: list[Step], names: Sequence[str] | None, folder: Path, about: dict[str, str]) -> list[Step]:
    """Return the steps in ``names`` or, if it is None, those that the folder does not record as done.

    Args:
        every: all steps.
        names: the value of ``gpu.steps``.
        folder: where the steps are recorded.
        about: the provenance of results measured now.
    """
    if names is None:
        now = {"status": DONE} | {name: about[name] for name in PROVENANCE}
        done = {row["step"] for row in read_records(folder / "steps.csv") if row.items() >= now.items()}
        return [step for step in every if step.name not in done]
    known = [step.name for step in every]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"gpu.steps names {', '.join(unknown)}: choose from {', '.join(known)}")
    return [step for step in every if step.name in names]


def run_steps(chosen_steps: list[Step], folder: Path, seconds: float, about: dict[str, str]) -> list[Outcome]:
    """Run steps one by one within a total time limit; record each, with its provenance, in ``steps.csv`` at its end."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for step in chosen_steps:
        left = deadline - time.monotonic()
        if left < 1:
            outcomes.append(Outcome(step.name, "not reached", 0.0, ""))
            continue
        print(f"== {step.name}, at most {min(step.seconds, left):.0f} s", flush=True)
        began = time.time()
        outcome = _run(step, min(step.seconds, left), folder / "logs" / f"{step.name}.log")
        outcomes.append(outcome)
        for table in tile_tables.CONFIGS.glob("*.json"):
            if table.stat().st_mtime >= began:  # written by this step
                shutil.copy(table, folder)
        _record(outcome, folder, about)
        print("\n".join(_lines(Path(outcome.log))[-TAIL:]))
        print(f"== {step.name}: {outcome.status}, {outcome.seconds:.0f} s", flush=True)
    return outcomes


def _run(step: Step, seconds: float, log: Path) -> Outcome:
    path = os.pathsep.join(filter(None, [str(ROOT.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    began = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, *step.arguments], cwd=ROOT, env=environment, process_group=0,
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
            status = DONE if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:.0f} s"
        finally:
            _end(process)
    return Outcome(step.name, status, time.monotonic() - began, str(log))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process group, including any children that the process has left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _record(outcome: Outcome, folder: Path, about: dict[str, str]) -> None:
    file = folder / "steps.csv"
    row: dict[str, Any] = outcome._asdict() | {"seconds": round(outcome.seconds)}
    row |= {"log": f"logs/{Path(outcome.log).name}"} | about
    others = [{column: other.get(column, "") for column in row} for other in read_records(file)]
    Table.of_records([*(other for other in others if other["step"] != outcome.step), row]).write_csv(file)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
