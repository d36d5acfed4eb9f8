"""Train a segmentation or detection network.

    python train.py                                                   the built-in data set, about two minutes
    python train.py model=ccnet dataset=camvid dataset.root=DIR       a real data set, with its recipe
    python train.py -m model.head.recurrence=0,1,2                    a sweep, summarised in a table and plots
    python train.py resume=RUN                                        resume a run exactly where it stopped
    torchrun --nproc-per-node=8 train.py dataset=cityscapes           on eight GPUs, with each batch split among them
    python train.py init=FILE dataset=camvid dataset.root=DIR         start from the weights of a run or published ones

All options are in ``conf/``; ``python train.py --help`` lists them. In Python, :func:`run` accepts them.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from ccnet import data
from ccnet.engine import checkpoints, evaluation, guards, resuming, runtime, sweeps, training
from ccnet.engine.commands.arguments import accepted, check_overrides
from ccnet.engine.commands.entry_point import entry_point
from ccnet.engine.commands.similar_options import similar_options
from ccnet.engine.commands.unread_options import refuse_unread, without_effect
from ccnet.models.factory import compose_conf

if TYPE_CHECKING:
    from torch import nn

_RUNNING = threading.Lock()  # held by the call of `run` that is training


@entry_point("config")
def main(config: DictConfig) -> float | None:
    """Start or resume a run; return its best validation score (mIoU or mask AP), which a search maximises.

    A run without a score returns None, which tells a search that the trial has failed.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if any(override.startswith("hydra.run.dir=") for override in HydraConfig.get().overrides.hydra):
        _check_resumed(config, folder, "hydra.run.dir")
    return _start_run(config, folder)


def run(*overrides: str, folder: str | Path) -> float | None:
    """Start or resume a run from Python; return its best validation score, or None if it has none.

    The score is ``recipe.monitor``, in [0, 1]: by default mIoU, or mask AP for object detection.

    Args:
        *overrides: command-line options, such as ``"dataset=folder"`` and ``"dataset.images=photos"``.
        folder: the output folder. A new run refuses a folder that already contains a run; ``"resume=auto"`` continues
            that run if its configuration and data are the same. With ``"resume=FOLDER"``, it must be that folder.

    Raises:
        ValueError: an option or the data set is invalid; the message says how to fix it.
        KeyboardInterrupt: Ctrl-C, or the stop button of a notebook, interrupted the run after it had saved its state;
            ``"resume=FOLDER"`` continues it. Pressed again, it interrupts the run immediately.

    Example:
        >>> run("dataset=folder", "dataset.images=photos", "dataset.masks=masks", "dataset.classes=2", folder="run")
    """
    _check_called(overrides)
    check_overrides(overrides)
    overrides = tuple(accepted(overrides))
    if not _RUNNING.acquire(blocking=False):
        raise ValueError(
            "another thread of this process is training, and both would draw from the same random number generators: "
            "wait for it, or start this run in a process of its own"
        )
    try:
        with runtime.as_command_line(overrides):
            config = compose_conf([*overrides], "config")
            refuse_unread(config, "config")
            output = runtime.given_path(folder)
            _check_resumed(config, output, "folder")
            return _start_run(config, output)
    except HydraException as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        hint = similar_options(overrides, "config")
        raise ValueError("\n".join(filter(None, [str(cause or error), hint]))) from error
    except runtime.Stopped as stopped:
        if stopped.received == "SIGINT":
            raise KeyboardInterrupt from None
        raise
    finally:
        _RUNNING.release()


def _check_called(overrides: Sequence[object]) -> None:
    """Raise an error for arguments of :func:`run` that are not options, or that only the command line supports."""
    for override in overrides:
        if not isinstance(override, str):
            raise TypeError(f"got {type(override).__name__}: pass each option as a string, run(*options, folder=DIR)")
        if override.startswith(("--config-dir", "-cd")):
            raise ValueError(
                f"{override} only applies to the command line: start ccnet-train with it in a process of its own, such "
                "as with subprocess.run"
            )
        if override.lstrip("+").startswith(("hydra.", "hydra/", "-")):
            raise ValueError(
                f"{override} only applies to the command line: remove it. folder=DIR sets the output folder, and a "
                "loop over calls of run replaces a sweep"
            )


def _check_resumed(config: DictConfig, folder: Path, option: str) -> None:
    """Raise ValueError if `option` is not the folder that ``resume`` names: nothing would be written to it."""
    if config.resume in (None, "auto"):
        return
    resumed = runtime.given_path(config.resume)
    if resumed.is_dir() and resumed.resolve() != folder.resolve():
        raise ValueError(
            f"{option}={folder}, but resume={resumed} continues the run in its own folder: set {option}={resumed}, or "
            f"start a new run from its best weights with init={resumed}"
        )


def _start_run(config: DictConfig, folder: Path) -> float | None:
    """Start or resume the run of a composed configuration; `folder` is the output folder of a new run."""
    guards.refuse_environment(config)
    if config.resume in (None, "auto"):  # resume=FOLDER uses the checkpoint's data set
        data.check_root(config.dataset)
    device, timeout = training.framework_of(resuming.preview(config)).device, config.collective_timeout
    config = training.with_length_and_rate(config)
    with runtime.processes(device, timeout=timeout), resuming.find_start(config, folder) as start:
        if start.saved is None:
            return train(config, start.folder)
        config = resuming.continued(config, start.saved)
        patience = config.recipe.patience
        done = sweeps.finished_score(start.folder, start.saved, config.recipe.max_iters, patience)
        if done is None:
            return train(config, start.folder, start.saved)
        if runtime.rank() == 0:
            sweeps.describe_again(start.folder)
            more = "patience" if sweeps.is_exhausted(start.saved, patience) else "max_iters"
            print(
                f"{start.folder} is already finished: {quote(f'resume={start.folder}')} recipe.{more}=MORE extends it"
            )
        return done


def train(config: DictConfig, folder: Path, saved: "checkpoints.Checkpoint | None" = None) -> float | None:
    """Train from scratch or resume from `saved`, and write all output to `folder`.

    Returns:
        The best score in [0, 1]; None if no validation produced a score.
    """
    began = time.perf_counter()
    config = checkpoints.located(config)
    framework = _checked_framework(config, folder, resumed=saved is not None)
    runtime.reset_peak(framework.device)
    runtime.seed_everything(config.seed)

    task = instantiate(config.task)
    train_set, val_set, warnings = _data_sets(config, task)
    if saved is None:
        warnings += without_effect(config)
    requested = config
    config = training.with_class_weights(config, train_set)
    model, config = checkpoints.initial_network(config, saved, classes=train_set.classes)
    if saved is None:  # see _checked_framework
        task.check(config, model)
    _check_network(config, task, model, train_set)

    model = training.on_device(model, framework.device, config)
    criterion = instantiate(config.loss).to(framework.device)
    training.check_outputs(model, criterion)
    training.freeze(config, model)
    optimizer = training.make_optimizer(config, model)
    schedule = training.make_schedule(config, optimizer)
    identity = resuming.identify(requested, saved, train_set, val_set)
    ema = training.AveragedWeights(model, config.ema) if config.ema is not None else None
    state = training.TrainingState(model, optimizer, schedule, identity, ema=ema, began=began)
    cost = {} if runtime.rank() else task.cost(model, config)  # the first process writes the result
    if saved:
        state.restore(saved, max_iters=config.recipe.max_iters)
        training.check_scores(task, state, train_set.classes)
    if runtime.rank() == 0:
        sweeps.set_aside_result(folder)

    step = framework.step(config, task, model, criterion, optimizer)
    loader = training.remaining_batches(config, train_set, task, start=state.iteration)
    with (
        runtime.StopRequest() as request,
        training.open_log(config, folder, task=task, dataset=train_set, state=state, group=sweeps.sweep_name()) as log,
    ):
        run = training.Run(
            config=config,
            folder=folder,
            task=task,
            state=state,
            step=step,
            device=framework.device,
            loader=loader,
            val_set=val_set,
            log=log,
            request=request,
        )
        run.say(training.opening_lines(run))
        for line in warnings:
            run.say(f"warning: {line}")
        run.fit()
    _finish(run, cost)
    return state.score


def _checked_framework(config: DictConfig, folder: Path, *, resumed: bool) -> "training.Framework":
    """Check everything in a run's configuration that can be checked without data, and return its framework."""
    guards.check_run(guards.plain(config), folder, resumed=resumed)
    if not resumed:  # an earlier version may have accepted what this one refuses
        training.check_statistics(config)
    framework = training.framework_of(config)
    framework.check(config)
    training.check_batch(config)
    return framework


def _data_sets(config: DictConfig, task: "evaluation.Task") -> "tuple[data.ImageDataset, data.ImageDataset, list[str]]":
    """Return the training and validation sets, with warnings from a first look at their labels."""
    from ccnet.data.label_checks import differing_classes, unpaired_sides, unused_masks

    train_set = data.build_dataset(config.dataset, "train", instantiate(config.recipe.train_transform))
    val_set = data.build_dataset(config.dataset, "val", task.eval_transform())
    if differing := differing_classes({"train": train_set.classes, "val": val_set.classes}):
        raise ValueError(differing[0])
    return (
        train_set,
        val_set,
        [
            *data.first_look(train_set, "train", skip_broken=config.skip_broken),
            *data.first_look(val_set, "val"),
            *unused_masks([train_set, val_set]),
            *unpaired_sides(train_set.classes, config.recipe.train_transform),
        ],
    )


def _check_network(
    config: DictConfig, task: "evaluation.Task", model: "nn.Module", train_set: "data.ImageDataset"
) -> None:
    """Raise ValueError unless the network, its data, its protocol and ``recipe.monitor`` are compatible."""
    training.check_batch(config)  # again, because `init` may have chosen the network
    training.check_channels(config, train_set)
    evaluation.check_monitor(task, train_set.classes, config.recipe.monitor)
    # A run cannot change its protocol, so one that failed in the first validation could not be continued.
    stride = config.model.backbone.output_stride
    evaluation.check_protocol(instantiate(config.protocol), classes=len(train_set.classes), stride=stride)


def _finish(run: "training.Run", cost: Mapping[str, float]) -> None:
    """Write the result of a completed run and print the closing lines."""
    unreadable = run.unreadable()
    if runtime.rank():
        return
    if run.log.val_images_per_s is not None:
        cost = {**cost, "val_images_per_s": run.log.val_images_per_s}
    origin = run.step.provenance() | {"training_images": len(run.samples.dataset)}
    identity = run.state.identity
    about = {"identity": identity.fingerprint, "provenance": origin}
    sweeps.write_result(run.folder, {"overrides": identity.overrides} | training.run_result(run, cost) | about)
    print(training.closing_lines(run, unreadable=unreadable))


if __name__ == "__main__":
    import ccnet.train  # so that launchers pickle `main` by reference: see entry_point

    ccnet.train.main()
