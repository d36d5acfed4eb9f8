"""Time full training iterations of several networks, in alternating rounds on one machine."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from ..engine.drawing.tables import Table, read_rows
from ..engine.guards.settings import replaced
from ..engine.runtime.devices import seed_everything
from ..engine.runtime.memory import process_peak_mib
from ..engine.runtime.provenance import provenance
from ..engine.training.averaging import AveragedWeights
from ..engine.training.batches import prefetch
from ..engine.training.setup.freezing import freeze
from ..engine.training.setup.optimizer import make_optimizer
from ..engine.training.steps.torch_step import TorchStep, on_device
from ..models.factory import build, compose_conf
from .failures import require_none, tolerated

KERNELS = ("line_forward_kernel", "line_backward_kernel")  # kernels of criss-cross attention


class Rounds(NamedTuple):
    """The measurements of one network, one per round.

    Attributes:
        milliseconds: the time of an iteration.
        mib: the peak GPU memory; on a CPU, NaN, followed by the peak memory of a separate process.
    """

    milliseconds: list[float]
    mib: list[float]


class Measurements:
    """The measurements of all networks so far, and the file that holds them.

    Args:
        runs: the configuration of each network by name; the first one is the baseline of the others.
        about: the setting and the provenance, added to each row of the file.
        path: the CSV file, whose earlier rows are kept.

    Attributes:
        rounds: the rounds of each network by name.
        shares: the fraction of its GPU time that a network spends in the criss-cross kernels, by name.
        path: the file.

    Raises:
        ValueError: the file has other columns.
    """

    def __init__(self, runs: Mapping[str, DictConfig], about: dict[str, Any], path: Path):
        self.batches = {name: run.recipe.batch_size for name, run in runs.items()}
        self.rounds = {name: Rounds([], []) for name in runs}
        self.shares: dict[str, float] = {}
        self.about, self.path = about, path
        self._earlier = read_rows(path, [*_row("", Rounds([1.0], []), None, 1, None), *about])

    def save(self) -> list[dict[str, Any]]:
        """Write the rows of the networks that have been measured to the file, and return them."""
        first = next(iter(self.rounds.values())).milliseconds
        baseline = statistics.median(first) if first else None
        rows = [
            _row(name, taken, baseline, self.batches[name], self.shares.get(name))
            for name, taken in self.rounds.items()
            if taken.milliseconds
        ]
        if rows:
            table = Table.of_records([row | self.about for row in rows])
            self.path.parent.mkdir(parents=True, exist_ok=True)
            Table(table.header, [*self._earlier, *table.rows]).write_csv(self.path)
        return rows


def time_training(config: DictConfig, device: torch.device) -> str:
    """Time the networks in turn and return the table; their rows in ``<output>_train.csv`` are rewritten every round.

    An entry of ``train.models`` is the name of a network, optionally followed by options of ``train.py``. The batch is
    random and in host memory. An iteration consists of the batch's copy to the device, forward pass, loss, backward
    pass, optimiser step and, with ``ema``, the moving average, queued as in training. On a CPU, process time is
    measured, which other load on the machine barely affects, and the peak memory is measured in a separate process.

    Raises:
        ValueError: some networks failed; they are not run again, and the table of the others is printed first.
    """
    options = config.train
    setting = list(options.settings[device.type])
    runs = {name: compose_conf([*setting, *f"model={name}".split()], "config") for name in options.models}
    about = {"setting": " ".join(setting), "clock": "wall" if device.type == "cuda" else "process", "seed": config.seed}
    measured = Measurements(runs, about | provenance(device), Path(f"{config.output}_train.csv"))
    failures: list[str] = []
    going = dict(runs)
    for _ in tqdm(range(options.rounds), desc="train", disable=None):
        for name, run in list(going.items()):
            with tolerated(name, failures):
                milliseconds, mib = _round(run, device, config.seed, options.iterations, options.warmup)
                measured.rounds[name].milliseconds.append(milliseconds)
                measured.rounds[name].mib.append(mib)
                continue
            del going[name]  # it failed
        measured.save()
    for name, run in going.items():
        with tolerated(f"{name}, details", failures):
            if device.type == "cuda":
                measured.shares[name] = _criss_cross_share(run, device, config.seed)
            else:
                measured.rounds[name].mib.append(_alone(_peak_of_process, run, config.seed))
        measured.save()
    rows = measured.save()
    table = Table.of_records(rows).text() if rows else "nothing was measured"
    text = f"{about['setting']}\n\n{table}\n\n{measured.path}"
    require_none(failures, text)
    return text


def _row(name: str, taken: Rounds, baseline: float | None, batch: int, share: float | None) -> dict[str, Any]:
    """Return the measurements of a network so far; ``baseline`` is the median of the first network, if it has one."""
    milliseconds = statistics.median(taken.milliseconds)
    mib = [each for each in taken.mib if not math.isnan(each)]
    return {
        "network": name,
        "step_ms": round(milliseconds, 1),
        "fastest_ms": round(min(taken.milliseconds), 1),
        "slowest_ms": round(max(taken.milliseconds), 1),
        "ratio": "not measured" if baseline is None else round(milliseconds / baseline, 3),
        "images_per_s": round(1e3 * batch / milliseconds, 2),
        "peak_mib": round(max(mib)) if mib else "not measured",
        "criss_cross_share": "not measured" if share is None else share,
    }


def _iterations(run: DictConfig, device: torch.device, seed: int) -> Iterator[Tensor]:
    """Run training iterations endlessly and yield the loss of each."""
    seed_everything(seed)
    run = replaced(run, num_classes=19)
    model = on_device(build(run.model).train(), device, run)
    freeze(run, model)
    average = None if run.ema is None else AveragedWeights(model, run.ema)
    optimizer = make_optimizer(run, model)
    step = TorchStep.of(run, instantiate(run.task), model, instantiate(run.loss).to(device), optimizer, device)
    size = run.recipe.batch_size, *run.recipe.train_transform.crop_size
    images = torch.randint(0, 256, (size[0], 3, *size[1:]), dtype=torch.uint8)  # as from the loader
    labels = torch.randint(0, run.num_classes, size, dtype=torch.uint8)
    if device.type == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()
    for iteration, placed in enumerate(prefetch(_endless((images, labels)), step.place, device)):
        loss = step(*placed, iteration).loss
        if average:
            average.update(iteration)
        yield loss


def _endless(batch: tuple[Tensor, Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
    while True:
        yield batch


def _round(run: DictConfig, device: torch.device, seed: int, number: int, warmup: int) -> tuple[float, float]:
    """Return the milliseconds per iteration and the peak GPU memory in MiB, NaN on a CPU."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    losses = _iterations(run, device, seed)
    start, loss = 0.0, torch.tensor(float("nan"))
    for iteration in range(warmup + number):
        if iteration == warmup:
            _finish(device)
            start = clock()
        loss = next(losses)
    _finish(device)
    seconds = clock() - start
    if not loss.isfinite():
        raise ArithmeticError(f"model={run.model._target_} ended with a loss of {loss}: its time is meaningless")
    mib = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else float("nan")
    return 1e3 * seconds / number, mib


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _alone(function: Callable[..., float], *arguments: object) -> float:
    """Call ``function(*arguments)`` in a new process and return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _peak_of_process(run: DictConfig, seed: int) -> float:
    """Return how much two iterations increase the peak memory of the process, in MiB."""
    before = process_peak_mib()
    losses = _iterations(run, torch.device("cpu"), seed)
    for _ in range(2):
        next(losses)
    return process_peak_mib() - before


def _criss_cross_share(run: DictConfig, device: torch.device, seed: int) -> float:
    """Return the fraction of the GPU time of one iteration that is spent in the criss-cross kernels."""
    losses = _iterations(run, device, seed)
    for _ in range(3):
        next(losses)
    _finish(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        next(losses)
        _finish(device)
    return round(share_of(KERNELS, ((event.key, event.self_device_time_total) for event in profile.key_averages())), 4)


def share_of(names: Iterable[str], times: Iterable[tuple[str, float]]) -> float:
    """Return the fraction of the time in (kernel, time) pairs spent in kernels whose names contain any of ``names``."""
    times = list(times)
    return sum(time for key, time in times if any(name in key for name in names)) / sum(time for _, time in times)
