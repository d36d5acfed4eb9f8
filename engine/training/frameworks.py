"""The framework that a command computes in: torch, or JAX with the twin of a torch network."""

from typing import Any, Protocol

import torch
from omegaconf import DictConfig
from torch import nn

from ..evaluation.tasks import Task
from ..runtime.devices import choose_device
from ..runtime.distributed import world_size
from .torch_step import Step, TorchStep


class Framework(Protocol):
    """What the entry points need of :class:`Torch` and :class:`Jax` alike.

    Attributes:
        device: the torch device of batches and of the torch network.
    """

    device: torch.device

    def evaluated(self, network: nn.Module, *, bf16: bool = False) -> Any:
        """Return a callable with the weights of `network` for evaluation and prediction."""
        ...

    def step(
        self, config: DictConfig, task: Task, model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Step:
        """Return the training step that the run's configuration describes."""
        ...


class Torch:
    """Compute in torch, on the device called ``device``."""

    def __init__(self, device: str):
        self.device = choose_device(device)

    def evaluated(self, network: nn.Module, *, bf16: bool = False) -> nn.Module:
        """Return the network on its device; the callers run it under autocast."""
        return network.to(self.device)

    def step(
        self, config: DictConfig, task: Task, model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Step:
        """Return a step that shares each batch with the other ranks."""
        return TorchStep.of(config, task, model, criterion, optimizer, self.device)


class Jax:
    """Compute in JAX, on the local devices of the kind ``device``; torch stays on the CPU."""

    device = torch.device("cpu")

    def __init__(self, device: str):
        self._name = device

    def evaluated(self, network: nn.Module, *, bf16: bool = False) -> Any:
        """Return the network's twin on the first device."""
        from ..evaluation.jax_network import JaxNetwork

        return JaxNetwork.of(network, bf16=bf16, device=self._name)

    def step(
        self, config: DictConfig, task: Task, model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Step:
        """Return a step over all local devices that can share a batch equally.

        Raises:
            ValueError: there are several processes, or the batch is accumulated.
        """
        from ..evaluation.jax_network import local_devices
        from .jax_step import JaxStep

        if world_size() > 1 or config.accumulate > 1:
            raise ValueError("framework=jax runs in one process, without accumulate: leave out torchrun and accumulate")
        return JaxStep(
            model,
            criterion,
            optimizer,
            devices=local_devices(self._name, config.recipe.batch_size),
            seed=config.seed,
            bf16=config.bf16,
            clip_norm=config.clip_norm,
        )


def choose_framework(name: str, device: str) -> Framework:
    """Return the framework called `name`, "torch" or "jax", on the device called `device`."""
    if name == "torch":
        return Torch(device)
    if name == "jax":
        return Jax(device)
    raise ValueError(f"framework is {name!r}: choose 'torch' or 'jax'")


def framework_of(config: DictConfig) -> Framework:
    """Return the framework of a run's configuration; torch if an early version wrote it, which knew no other."""
    return choose_framework(config.get("framework", "torch"), config.device)
