"""Gradient checkpointing of the backbone: recompute its activations in the backward pass instead of keeping them."""

import re
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ....models.stages import backbone_modules


def checkpoint_gradients(model: nn.Module) -> None:
    """Have timm checkpoint the stages of a network's backbone.

    The running statistics of batch norm are not updated in the recomputed forward pass, because a step would otherwise
    update them twice.

    Raises:
        ValueError: timm cannot checkpoint this backbone.
    """
    modules = backbone_modules(model)
    net: Any = next(iter(modules.values()))
    if not hasattr(net, "set_grad_checkpointing"):
        raise ValueError(f"timm cannot checkpoint {type(net).__name__}: set grad_checkpointing=false")
    version = [int(number) for number in re.findall(r"\d+", timm.__version__)[:3]]
    if version < [1, 0, 31]:  # these versions also checkpoint the activation of the stem
        for part in net.children():
            if getattr(part, "inplace", False) is True:
                part.inplace = False  # otherwise it overwrites the input that is saved for the backward pass
    net.set_grad_checkpointing(True)
    for module in modules.values():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_hold)
            module.register_forward_hook(_release, always_call=True)


def _hold(module: nn.Module, inputs: Any) -> None:
    """Set the momentum to 0 for a recomputed forward pass, after saving it and the batch counter."""
    norm: Any = module
    if norm.training and torch._C._current_graph_task_id() != -1:  # only a backward pass has one
        norm._held = norm.momentum, norm.num_batches_tracked.clone()
        norm.momentum = 0.0


def _release(module: nn.Module, inputs: Any, output: Any) -> None:
    norm: Any = module
    if held := norm.__dict__.pop("_held", None):
        norm.momentum, before = held
        norm.num_batches_tracked.copy_(before)
