"""Determine the configuration with which a run continues: the checkpoint's, except for options that may change."""

import warnings
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ...data import ImageDataset
from ..checkpoints.locations import LOCATIONS, absolute, moved
from ..checkpoints.options import completed, flat, is_within, text, with_option
from ..checkpoints.record import Checkpoint
from ..guards.settings import plain
from ..runtime.distributed import from_first, rank, world_size
from ..runtime.launchers import is_first
from ..runtime.overrides import EXECUTION, given_options, given_overrides
from .contents import changed, data_contents, weight_contents
from .identity import LENGTH, PATIENCE, Identity, choices, differing, fingerprint

# Options that resume=FOLDER may change, although the run then differs from one that used them from the start.
INEXACT = ("recipe.batch_size", "accumulate")
_FREE = (*LOCATIONS, LENGTH, PATIENCE, *INEXACT)
_EXECUTION = tuple(option for option in EXECUTION if option != "resume")
_ACCOUNT = ("entity", "project")  # the options of the logger that name a W&B account


def check_given(given: Mapping[str, Any]) -> None:
    """Raise ValueError if an option passed with ``resume=FOLDER`` would change what the run computes."""
    wrong = [text(given, name) for name in given if not is_within(name, *EXECUTION, *_FREE)]
    if wrong:
        raise ValueError(
            f"a resumed run keeps its own configuration: remove {' '.join(wrong)}. It may change "
            f"{', '.join((*_FREE, *_EXECUTION))}"
        )


def continued(config: DictConfig, saved: Checkpoint) -> DictConfig:
    """Return the configuration to resume with, and print what it changes.

    It is the checkpoint's, with defaults for options that were added to the code later, and with the command line's
    values for the options that may change, such as how the run is executed, where its files are, and how long it is.

    Args:
        config: the command line's configuration.
        saved: the checkpoint to resume from; its tensors are not used.

    Raises:
        ValueError: the command line sets a location that the run does not have, or fewer iterations than it has done.
    """
    auto, given, now = config.resume == "auto", given_options(), plain(config)
    options = flat(now) if auto else given
    result, defaults = completed(saved.config, now, given)
    _report_defaults(saved, defaults)
    groups = {name.partition(".")[0] for name in given}
    result |= {key: now[key] for key in _EXECUTION if key in now and (auto or key in groups)}
    if not auto and "logger" not in groups:
        result |= _own_account(saved, now)
    result = moved(result, options)
    if auto and now.get("init") is not None:
        result["init"] = absolute(now["init"])
    for name in (PATIENCE, *(() if auto else INEXACT)):
        if name in options:
            result = with_option(result, name, options[name])
    if options.get(LENGTH) not in (None, result["recipe"]["max_iters"]):
        result = _of_length(result, options[LENGTH], saved, schedule=now["optimizer"]["schedule"] if auto else None)
        result = with_option(result, "recipe.epochs", options.get("recipe.epochs"))
    return OmegaConf.create(result)


def _report_defaults(saved: Checkpoint, defaults: Mapping[str, Any]) -> None:
    """Print the options that the checkpoint lacks and the defaults that they take."""
    # Users do not set inherited_data. With init, the model node is that of the checkpoint it names, which may be older
    # than the run.
    unsaid = ("inherited_data",) if saved.config.get("init") is None else ("inherited_data", "model.")
    newer = " ".join(text(defaults, name) for name in defaults if not name.startswith(unsaid))
    if newer and is_first():
        print(f"{saved.source} predates some options, which take their defaults: {newer}")


def _own_account(saved: Checkpoint, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"logger": node}, the checkpoint's with the user's own W&B account, no matter who wrote the checkpoint.

    It is empty if the checkpoint or the current command, whose plain configuration is ``now``, does not log to W&B.
    """
    theirs, ours = saved.config.get("logger", {}), now["logger"]
    if theirs.get("_target_") is None or ours.get("_target_") is None:
        return {}
    account = {key: ours.get(key) for key in _ACCOUNT}
    of_checkpoint = {key: theirs.get(key) for key in _ACCOUNT}
    if of_checkpoint != account and is_first():
        settings = " ".join(f"logger.{key}={value}" for key, value in of_checkpoint.items() if value is not None)
        print(f"W&B: the account in the checkpoint is ignored; to use it, set it on the command line: {settings}")
    return {"logger": theirs | account}


def _of_length(
    config: dict[str, Any], iterations: int, saved: Checkpoint, schedule: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a checkpoint's configuration for another number of iterations.

    Args:
        config: the checkpoint's configuration.
        iterations: the new number of iterations.
        saved: the checkpoint.
        schedule: the ``schedule`` node for the new length. If None, the checkpoint's is used: its interpolations are
            already resolved, so every argument except the warm-up that equals the old number of iterations is set to
            the new one.
    """
    before, done = config["recipe"]["max_iters"], saved.iteration or 0
    if type(iterations) is int and iterations < done:
        raise ValueError(f"{LENGTH}={iterations}, but {saved.source} already has {done} iterations: set {done} or more")
    if schedule is None:
        own = config["optimizer"]["schedule"]
        lengths = {key for key, value in own.items() if type(value) is int and value == before and "warmup" not in key}
        schedule = {key: iterations if key in lengths else value for key, value in own.items()}
    if is_first():
        print(
            f"{LENGTH}={iterations} instead of {before}: after iteration {done}, the learning rate is that of a run of "
            f"{iterations} iterations"
        )
    config = with_option(config, LENGTH, iterations)
    return with_option(config, "optimizer.schedule", schedule)


def identify(config: DictConfig, saved: Checkpoint | None, train_set: ImageDataset, val_set: ImageDataset) -> Identity:
    """Return the identity of a run; warn if it does not continue exactly as if it had never been interrupted.

    All processes must call it.

    Args:
        config: the configuration before the values that only become known at run time are filled in.
        saved: the checkpoint that the run continues from; None for a new run.
        train_set: the training data.
        val_set: the validation data.
    """
    contents = from_first({} if rank() else data_contents(train_set, val_set))
    if saved is None:
        contents |= weight_contents(config)
        return Identity(fingerprint(config, contents), contents, choices(), given_overrides())
    reasons = inexact(saved, config, contents, world_size())
    if reasons and not rank():
        warnings.warn(f"this continuation is not exact: {'; '.join(reasons)}", stacklevel=2)
    known = saved.training
    return Identity(
        fingerprint=known["identity"],
        contents=(known.get("contents") or {}) | contents,
        choices=known.get("choices") or {},
        overrides=_overrides(known.get("overrides") or {}),
    )


def _overrides(before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides of a resumed run: ``resume=auto`` repeats them, ``resume=FOLDER`` only changes some."""
    given = given_overrides()
    if given_options().get("resume") == "auto":
        return given
    return {**before, **{name: value for name, value in given.items() if name.lstrip("+") != "resume"}}


def inexact(saved: Checkpoint, config: DictConfig, contents: Mapping[str, str], processes: int) -> list[str]:
    """Return the reasons why a continued run differs from one that was never interrupted.

    Args:
        saved: the checkpoint that it continues from.
        config: the configuration that it continues with.
        contents: the contents of its data sets; see :func:`.contents.data_contents`.
        processes: the number of processes.
    """
    was, now = flat(saved.config), flat(plain(config))
    reasons = differing([name for name in INEXACT if name in was], now, was)
    before = len(saved.training["random"])
    if before != processes:
        reasons.append(f"number of processes {processes} instead of {before}")
    known = saved.training.get("contents") or {}
    return reasons + changed({name: known[name] for name in contents if name in known}, contents if known else {})
