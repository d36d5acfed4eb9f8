"""The identity of a run: what it computes and from which data, regardless of its length and of where it is executed.

Two runs are considered the same if all options that affect the computation are equal, and their data sets and initial
weights have the same contents. Options that were added to the code after a checkpoint was written are compared by their
defaults.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ..checkpoints.locations import absolute, is_location, located
from ..checkpoints.options import CHECKED, completed, flat, is_given, is_interpolated, text
from ..checkpoints.record import Checkpoint
from ..guards.setting_types import BOUNDS
from ..guards.settings import plain, replaced
from ..runtime.overrides import EXECUTION
from .contents import changed, digest, weight_files

LENGTH = "recipe.max_iters"
PATIENCE = "recipe.patience"
_LENGTHS = (LENGTH, PATIENCE, "recipe.epochs")
_MISSING = object()


class Identity(NamedTuple):
    """The identity of a run, as recorded in its checkpoints.

    Attributes:
        fingerprint: see :func:`fingerprint`.
        contents: hashes of the data sets and of the files with the initial weights.
        choices: the choice of each configuration group; {} if the run was not started by Hydra.
        overrides: the overrides that describe the run, {option: value}, as in its ``result.json``.
    """

    fingerprint: str
    contents: dict[str, str]
    choices: dict[str, str]
    overrides: dict[str, Any]


def fingerprint(config: DictConfig, contents: Mapping[str, str]) -> str:
    """Return the hash that identifies a run, from the options that affect its computation and its files' contents.

    Args:
        config: the composed configuration of a new run; the hash does not depend on its length.
        contents: see :func:`.contents.data_contents` and :func:`.contents.weight_contents`.
    """
    kept = {name: value for name, value in flat(plain(of_length(config, 1))).items() if _matters(name, config)}
    return hashlib.sha256(json.dumps([kept, dict(contents)], sort_keys=True).encode()).hexdigest()


class RequestedRun:
    """The run that a command line describes, to be compared with existing checkpoints.

    Args:
        config: the composed configuration.
        given: the options on the command line.
        data: returns the contents of the data sets; called only if a checkpoint has the same options.
    """

    def __init__(self, config: DictConfig, given: Mapping[str, Any], data: Callable[[], dict[str, str]]):
        self.config, self.given = located(config), given
        self.choices = choices()
        self.length: int = OmegaConf.select(config, LENGTH)
        self._plain_of_length = cache(lambda length: plain(of_length(self.config, length)))
        self._data_contents = cache(data)

    def differences(self, saved: Checkpoint) -> list[str]:
        """Describe what a checkpoint's run computes differently, except its length: "seed=0 instead of 1", for example.

        Returns:
            One entry per difference; an empty list if both are the same run.
        """
        requested = self._plain_of_length(flat(saved.config).get(LENGTH, self.length))
        with_defaults, defaults = completed(saved.config, requested, self.given)
        was, now = ({"dataset.class_weights": None} | flat(node) for node in (with_defaults, requested))
        if self.choices and saved.training.get("choices") == self.choices:
            # The configuration groups are the same, so unless the command line adds them, these arguments are new.
            now |= {name: value for name, value in flat(defaults).items() if not is_given(name, self.given)}
        was, now = _without_disabled_ramps(_without_computed_weights(was)), _without_disabled_ramps(now)
        names = [name for name in {**now, **was} if _matters(name, self.config)]
        # Interpolated options differ because their sources do, so they are reported only if no source is.
        sources = [name for name in names if not is_interpolated(self.config, name)]
        return differing(sources, was, now) or differing(names, was, now) or self._other_files(saved, was, now)

    def _other_files(self, saved: Checkpoint, was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        contents = saved.training.get("contents")
        if contents is None:  # a checkpoint from earlier code has no hashes: compare the locations
            places = [name for name in {**now, **was} if is_location(name)]
            return differing(places, *({name: absolute(node.get(name)) for name in places} for node in (was, now)))
        weights = {}
        for name, value in weight_files(self.config).items():
            same = absolute(was.get(name)) == absolute(value)
            try:
                if name in contents or not same:  # unknown if the run was started by earlier code
                    weights[name] = digest(value)
            except FileNotFoundError:  # a resumed run does not need the file
                weights[name] = contents[name] if same else f"the missing file {value}"
        return changed(contents, self._data_contents() | weights)


def differing(names: Iterable[str], options: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Describe the options whose values differ, such as "seed=0 instead of 1" for 0 in ``options``, 1 in ``others``."""
    return [
        f"{text(options, name)} instead of {text(others, name).partition('=')[2]}"
        for name in names
        if options.get(name, _MISSING) != others.get(name, _MISSING)
    ]


def _without_computed_weights(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's options without the class weights that were computed when its run started."""
    computed = options.get("class_weights")
    in_loss = [name for name in options if name.startswith("loss.") and name.endswith(".class_weights")]
    return {**options, **{name: None for name in in_loss if options[name] == computed}, "class_weights": None}


def _without_disabled_ramps(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without disabled ramps of loss terms, which earlier checkpoints do not have."""
    return {name: value for name, value in options.items() if not name.startswith("loss.ramp") or value}


def _matters(name: str, config: DictConfig) -> bool:
    part = name.partition(".")[0]
    if (
        part in (*EXECUTION, "training_crop", "inherited_data")
        or name.endswith("num_classes")
        or name in _LENGTHS
        or is_location(name)
    ):
        return False  # training_crop, inherited_data and num_classes follow from other options and files
    if name == "dataset.class_weights":
        return True
    if part == "model":
        return config.init is None  # otherwise, the checkpoint that init names determines the network
    # All other options of these groups act only through interpolations in the options compared here.
    if part == "dataset":
        return name.startswith(("dataset.train.", "dataset.val.")) or name in BOUNDS
    if part == "recipe":
        return name.startswith("recipe.train_transform") or name in CHECKED
    return part != "backbone"


def choices() -> dict[str, str]:
    """Return {configuration group: choice}, without Hydra's groups and the logger; {} outside Hydra."""
    if not HydraConfig.initialized():
        return {}
    groups = HydraConfig.get().runtime.choices.items()
    return {
        str(name): str(choice) for name, choice in groups if choice and not str(name).startswith(("hydra/", "logger"))
    }


def of_length(config: DictConfig, iterations: int) -> DictConfig:
    """Return a copy of a composed configuration with a new number of iterations, also wherever it is interpolated."""
    result = replaced(config)
    OmegaConf.update(result, LENGTH, iterations)
    return result
