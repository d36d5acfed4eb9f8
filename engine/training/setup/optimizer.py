"""The optimiser of a run and its schedule, with optional learning rates and weight decays per part of the network."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from .freezing import frozen_parameters

_PEAKS = ("max_lr", "base_lr")  # arguments of torch's schedules that are learning rates and accept one per group


def make_optimizer(config: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of a run, without the parameters of frozen stages.

    By default, all parameters form one group. If ``optimizer.lr_factors`` or ``optimizer.norm_weight_decay`` is set,
    they are grouped by learning rate factor and weight decay, and each group stores its factor as "lr_factor".

    Raises:
        ValueError: ``optimizer.lr_factors`` names a part that no trained parameter has in its name.
    """
    frozen = {*frozen_parameters(config, model)}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter not in frozen}
    factors, decay = config.optimizer.lr_factors or {}, config.optimizer.norm_weight_decay
    if not factors and decay is None:
        return instantiate(config.optimizer.algorithm, trained.values())
    _check_parts(factors, trained)
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in trained.items():
        key = lr_factor(name, factors), decay is not None and parameter.ndim <= 1
        groups.setdefault(key, []).append(parameter)
    rate = config.optimizer.algorithm.lr
    nodes = [
        {"params": parameters, "lr": factor * rate, "lr_factor": factor} | ({"weight_decay": decay} if is_norm else {})
        for (factor, is_norm), parameters in groups.items()
    ]
    return instantiate(config.optimizer.algorithm, nodes)


def make_schedule(config: DictConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Return the learning rate schedule of a run, in which each group's learning rates are scaled by its factor.

    Raises:
        ValueError: the schedule ends before the run, at an iteration where torch would raise an error.
    """
    node = config.optimizer.schedule
    factors = [group.get("lr_factor", 1.0) for group in optimizer.param_groups]
    rates = {key: node[key] for key in _PEAKS if node.get(key) is not None and any(factor != 1 for factor in factors)}
    peaks = {key: [factor * rate for factor in factors] for key, rate in rates.items()}
    schedule = instantiate(node, optimizer, _convert_="all", **peaks)
    length, last = getattr(schedule, "total_steps", None), config.recipe.max_iters
    if length is not None and length < last:
        raise ValueError(
            f"optimizer.schedule ends after {length} iterations and the run after recipe.max_iters={last}, but "
            f"{type(schedule).__name__} cannot continue: set optimizer.schedule.total_steps={last}, or leave it out"
        )
    return schedule


def lr_factor(name: str, factors: Mapping[str, float]) -> float:
    """Return the learning rate factor of a parameter: that of the longest matching part, or 1 if none matches.

    Args:
        name: the dotted name of the parameter, such as "backbone.net.layer4.0.bn1.bias".
        factors: {part: factor}; a part matches if it is one or more consecutive components of the name, such as
            "backbone", "layer4", "backbone.net.layer4" or "bias".
    """
    parts = [part for part in factors if _is_part(part, name)]
    return float(factors[max(parts, key=len)]) if parts else 1.0


def _is_part(part: str, name: str) -> bool:
    return f".{part}." in f".{name}."


def _check_parts(factors: Mapping[str, Any], names: Iterable[str]) -> None:
    names = list(names)
    if unknown := [part for part in factors if not any(_is_part(part, name) for name in names)]:
        parts = list(dict.fromkeys(name.partition(".")[0] for name in names))
        raise ValueError(
            f"optimizer.lr_factors names {', '.join(unknown)}, but no trained parameter has such a part in its name: "
            f"the parts of this network are {', '.join(parts)}"
        )
