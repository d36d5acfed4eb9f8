"""Shared fixtures: generated data sets in real layouts, and the entry points as a user runs them."""

import copy
import gc
import importlib.metadata
import io
import itertools
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path

import faster
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, settings
from PIL import Image


def _version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it on first import; the kernels then run on the CPU
    os.environ["JAX_PLATFORMS"] = "cpu"  # JAX's CUDA plugin fails without a GPU
    os.environ["JAX_NUM_CPU_DEVICES"] = "4"  # so that a batch can be sharded
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # most programs run once: not worth optimising
    if _version("jaxlib").startswith("0.10."):  # compiles in half the time; JAX 0.12 has no such option
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    with suppress(ImportError):  # Triton is not available for every machine
        import interpreter  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# Seconds after which a test gives up on a process that hangs. No test depends on how fast the machine is.
PATIENCE = 600

# A run that takes seconds: on few, small images of the embedded data set, or on ``camvid_root``; in a narrow network.
SHORT = [
    "recipe.max_iters=4", "recipe.val_every=2", "recipe.batch_size=2", "log_every=1", "num_workers=0", "logger=none",
    "device=cpu",
]  # fmt: skip
TINY = [*SHORT, "recipe.head.channels=16", "dataset.train.length=8", "dataset.val.length=3", "dataset.size=65"]
TINY_CAMVID = [
    *SHORT, "dataset=camvid", "backbone=beacons", "recipe.head.channels=16", "recipe.train_transform.crop_size=[65,81]",
]  # fmt: skip


@cache
def _composed_once(name, overrides, **options):
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        return compose(name, overrides=list(overrides), **options)


def configured(*overrides, name="config", **options):
    """Return the configuration of a command line, which the caller may change."""
    return copy.deepcopy(_composed_once(name, overrides, **options))  # composing takes 40 times as long as copying


def composed(*overrides):
    """Return the configuration of a tiny run."""
    return configured(*TINY, *overrides)


@pytest.fixture
def poisoned_memory():
    """Fill new memory with NaN, so that missing stores are detected."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def operators_on_small_calls(monkeypatch):
    """Send even the small calls of tests to the CPU operators; normally, the reference computes them."""
    from ccnet.kernels.torch_ops.cpu import operators  # after the settings above

    monkeypatch.setattr(operators, "MIN_SCORES", 0)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Return the folder of a finished run of four iterations."""
    from ccnet.train import train  # after the settings above

    folder = tmp_path_factory.mktemp("whole")
    train(composed(), folder)
    return folder


def pytest_collection_finish():
    """Exempt what exists before the first test from garbage collection, and collect less often: it took 5% of a run."""
    gc.freeze()
    gc.set_threshold(10_000)


# For tests/fuzzing.py; profiles registered by a test module would be too late for --hypothesis-profile=thorough.
_FUZZING = {"deadline": 300_000, "suppress_health_check": list(HealthCheck), "database": None}  # ms
settings.register_profile("quick", derandomize=True, **_FUZZING)
settings.register_profile("thorough", derandomize=False, **_FUZZING)
settings.load_profile("quick")


@contextmanager
def jax_cache(folder):
    """Keep compiled JAX programs in a folder, from which later calls take them, also programs for several devices."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_remove_custom_partitioning_ptr_from_cache_key": True,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.fixture
def jax_float64():
    """Allow float64 in JAX, which otherwise converts it to float32."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _same_start():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _without_pictures(request, monkeypatch):
    """Omit half of the work of a tiny run. Fixtures of a wider scope, such as `whole`, come first, and draw all."""
    runs = "ccnet.train" in sys.modules or "run_entry" in request.fixturenames  # otherwise, importing takes seconds
    if runs and "pictures" not in request.fixturenames:
        faster.omit_pictures_and_costs(monkeypatch)


@pytest.fixture
def pictures():
    """Have a test draw all pictures and count all costs, as users' runs do."""


@pytest.fixture(autouse=True, scope="module")
def _little_memory():
    """Free compiled JAX programs between test modules. All of them together take gigabytes."""
    yield
    statm = Path("/proc/self/statm")
    resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0
    if "jax" in sys.modules and resident > 2**31:
        sys.modules["jax"].clear_caches()  # compiling common operations again takes a second


@pytest.fixture
def run_entry(tmp_path, monkeypatch, forked_workers):
    """Return :func:`entry_runner` for an empty folder."""
    return entry_runner(tmp_path, monkeypatch)


def entry_runner(folder: Path, monkeypatch) -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs an entry point as a user does, but in this process, which has loaded torch."""

    def run(script: str, *arguments: object, ok: bool = True) -> subprocess.CompletedProcess:
        command = [str(ROOT / script), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # which --cfg and --help set
        monkeypatch.chdir(folder)
        monkeypatch.setenv("WANDB_MODE", "offline")
        if "absl.logging" in sys.modules:  # loaded by JAX; Hydra's logging reset closes its stream
            sys.modules["absl.logging"].get_absl_handler().python_handler.stream = sys.__stderr__
        out, err, code = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                runpy.run_path(command[0], run_name="__main__")
            except SystemExit as exit_:
                code = exit_.code
        assert (not code) == ok, out.getvalue() + err.getvalue()
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    return run


def run_python(*arguments: object, cwd: Path = ROOT, **environment: str | None) -> str:
    """Run Python in a new process, which must succeed; return what it prints.

    Args:
        *arguments: those of the interpreter, such as "-c" and a program.
        cwd: the folder to run in.
        **environment: variables to set, or to remove if None.
    """
    variables = {name: value for name, value in (os.environ | environment).items() if value is not None}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=variables, timeout=PATIENCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def at_call(number: int, do: Callable[[], object], function: Callable) -> Callable:
    """Wrap a function so that its `number`-th call first calls `do`."""
    numbers = itertools.count(1)

    def wrapped(*arguments, **named):
        if next(numbers) == number:
            do()
        return function(*arguments, **named)

    return wrapped


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun_variables(processes: int = 2) -> list[dict[str, str]]:
    """Return the environment variables that ``torchrun`` sets in each of the processes of one run."""
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def forkserver():
    """Return a context that forks processes from one that has imported slow modules and has no threads with locks.

    A process has one such server, and the first one that a test starts serves all: hence the same list everywhere.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([
        "torch", "torchvision", "timm", "hydra", "hypothesis", "pytest", "ccnet.train", "ccnet.models.segmentor",
        "ccnet.engine.evaluation.tasks.semantic", "ccnet.engine.training.wandb_logger",
    ])  # fmt: skip
    return context


@pytest.fixture
def forked_workers(monkeypatch):
    """Fork data workers from the server above. A process with JAX would spawn them, and each would import torch."""
    forkserver()
    monkeypatch.setattr("ccnet.data.loader._start_method", lambda num_workers: "forkserver" if num_workers else None)


def forked(
    script: str, arguments: Sequence[object], *, output: Path, cwd: Path, environment=(), hook=None, pictures=False
) -> BaseProcess:
    """Start an entry point in a process that the server above forks, which saves the seconds of importing torch.

    Args:
        script: such as "train.py".
        arguments: those of the command line.
        output: the file for all that it prints.
        cwd: the folder to run in.
        environment: variables to set.
        hook: a function to call in the process before the entry point.
        pictures: whether training draws.
    """
    options = (script, [*map(str, arguments)], output, cwd, dict(environment), hook, pictures)
    process = forkserver().Process(target=_run_forked, args=options)
    process.start()
    return process


def _run_forked(script, arguments, output, cwd, environment, hook, pictures):
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a data loader, which blocks signals, may have started the server
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= environment
    multiprocessing.set_start_method("fork", force=True)  # data workers must not inherit the server's start method
    torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.2  # s; 5 is how long they outlive a killed process
    os.chdir(cwd)
    sys.argv = [str(ROOT / script), *arguments]
    faster.omit_here(pictures=not pictures)
    if hook:
        hook()
    runpy.run_path(sys.argv[0], run_name="__main__")


def members(group: int) -> list[int]:
    """Return the processes of a group that are still running."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, pgid = path.read_text().rsplit(")", 1)[1].split()[:3]
            if int(pgid) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def write_pair(image: Path, label: Path, *, classes: int, size=(48, 64), seed: int = 0) -> np.ndarray:
    """Write a two-colour image and a label image of vertical stripes; return the labels."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(size[1])[None] * classes // size[1], size[0], axis=0).astype(np.uint8)
    pixels = (labels[..., None] * 20 + generator.integers(0, 20, (*size, 3))).astype(np.uint8)
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(image)
    Image.fromarray(labels).save(label)
    return labels


@pytest.fixture
def camvid_root(tmp_path) -> Path:
    """Return the root of a CamVid data set with six small frames; the last stripe is class 11, unlabelled."""
    root = tmp_path / "CamVid"
    for split, count in (("train", 4), ("val", 2)):
        lines = []
        for index in range(count):
            name = f"0001TP_{index:06d}"
            write_pair(root / split / f"{name}.png", root / f"{split}annot" / f"{name}.png", classes=12, seed=index)
            lines.append(f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def folder_data(tmp_path) -> tuple[Path, Path]:
    """Return a user's own folders of images and of label images with three classes."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    for index in range(6):
        write_pair(images / f"{index}.jpg", masks / f"{index}.png", classes=3, seed=index)
    return images, masks
