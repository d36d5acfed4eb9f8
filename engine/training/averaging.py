"""An exponential moving average of a network's weights, which replaces them in validations and ``best.safetensors``."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from ...models import tensor_files


class AveragedWeights:
    """The exponential moving average of the weights and batch norm statistics of a network.

    The decay at iteration n is min(decay, (1 + n) / (10 + n)), so that the average forgets the initial weights quickly.

    Args:
        model: the network, on its device; the average starts with its weights.
        decay: the decay per iteration, in (0, 1).

    Attributes:
        network: a copy of the network with the averaged weights, in eval mode.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(model).requires_grad_(False).eval()
        own, theirs = self.network.state_dict(), model.state_dict()
        self._averages = [value for value in own.values() if value.is_floating_point()]
        self._sources = [theirs[key] for key, value in own.items() if value.is_floating_point()]
        self._counters = [(value, theirs[key]) for key, value in own.items() if not value.is_floating_point()]

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Update the averages with the weights after `iteration` (0-based)."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        cast(Any, torch)._foreach_lerp_(self._averages, self._sources, 1 - decay)
        for counter, source in self._counters:
            counter.copy_(source)

    def load(self, saved: Any) -> None:
        """Load the averaged weights of a checkpoint.

        Raises:
            ValueError: they are missing, or do not match the network.
        """
        own = self.network.state_dict()
        if not isinstance(saved, Mapping) or saved.keys() != own.keys():
            raise ValueError("its averaged weights (ema) are missing, or belong to another network")
        for key, value in own.items():
            if not (tensor_files.is_plain(saved[key]) and saved[key].shape == value.shape):
                raise ValueError(f"its averaged weights (ema) do not match the network in {key}")
        self.network.load_state_dict(saved)
