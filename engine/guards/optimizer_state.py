"""Check the optimiser and scheduler states in a checkpoint against the objects that are to load them.

torch's optimisers and schedulers load a state without validating it, and a fused step assumes that each state tensor
has the size of its parameter: it would write past the end of a smaller one.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from ...models import tensor_files


def alike(saved: Any, own: Any, name: str) -> Any:
    """Return ``saved`` with the keys of ``own``, after checking that it differs only in numeric values.

    Dict keys may differ between torch versions: a key that only ``own`` has keeps its value, and one that only
    ``saved`` has is dropped.

    Args:
        saved: nested dicts and lists from a checkpoint.
        own: the corresponding state of the object that is to load it.
        name: the name of the state in error messages.

    Raises:
        ValueError: a non-numeric value or the length of a list differs.
    """
    if isinstance(own, dict) and isinstance(saved, dict):
        result = copy.copy(own)
        for key in own.keys() & saved.keys():
            result[key] = alike(saved[key], own[key], f"{name}.{key}")
        return result
    if isinstance(own, (list, tuple)) and isinstance(saved, (list, tuple)) and len(own) == len(saved):
        return type(own)(alike(*pair, f"{name}.{place}") for place, pair in enumerate(zip(saved, own, strict=True)))
    if _is_number(own) and _is_number(saved):
        return saved
    if type(own) is type(saved) and not isinstance(own, (dict, list, tuple)) and own == saved:
        return own
    raise ValueError(f"{name} is {str(saved)[:80]!r}, but this run has {str(own)[:80]!r}")


def optimizer_state(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return ``saved`` in a form that ``optimizer`` can load safely.

    Args:
        saved: an optimiser's ``state_dict`` from a checkpoint.
        optimizer: the optimiser that is to load it.

    Raises:
        ValueError: the state belongs to a different kind of optimiser or to different parameters.
    """
    own = optimizer.state_dict()["param_groups"]
    groups = alike(saved["param_groups"], own, "optimizer.param_groups")
    if [group["params"] for group in groups] != [group["params"] for group in own]:
        raise ValueError("the optimizer's groups belong to different parameters")
    state = saved["state"]
    parameters = [(parameter, group.get("fused")) for group in optimizer.param_groups for parameter in group["params"]]
    kinds = {frozenset(entry) for entry in state.values()}
    if len(kinds) > 1 or not state.keys() <= set(range(len(parameters))):
        raise ValueError("the optimizer's state belongs to different parameters")
    for number, (parameter, fused) in enumerate(parameters):
        if fused:  # a fused step needs state for every parameter, but those without a gradient so far have none
            state.setdefault(
                number, {key: parameter.new_zeros(_shape(key, parameter)) for key in next(iter(kinds), ())}
            )
        for key, value in state.get(number, {}).items():
            if not (_fits(value, key, parameter) if fused else _is_plain(value)):
                raise ValueError(
                    f"the optimizer's {key} of parameter {number} does not fit that parameter, whose shape is "
                    f"{tuple(parameter.shape)}"
                )
    return {"state": state, "param_groups": groups}


def _shape(key: str, parameter: Tensor) -> torch.Size:
    return torch.Size() if key == "step" else parameter.shape


def _fits(value: Any, key: str, parameter: Tensor) -> bool:
    return tensor_files.is_plain(value) and value.shape == _shape(key, parameter)


def _is_plain(value: Any) -> bool:
    return value is None or _is_number(value) or tensor_files.is_plain(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
