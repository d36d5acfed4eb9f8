"""The framework a command runs in: torch, or JAX with the Flax twin of a torch network."""

from typing import Any, Protocol

import torch
from hydra.utils import get_object
from omegaconf import DictConfig
from torch import nn

from ....models.factory import build
from ...checkpoints.options import without_pretrained
from ...evaluation.tasks import Task
from ...guards.settings import plain
from ...runtime.devices import choose_device
from ...runtime.distributed import world_size
from ..setup.freezing import held_modules
from .torch_step import Step, TorchStep


class Framework(Protocol):
    """Common interface of :class:`Torch` and :class:`Jax` that the entry points use.

    Attributes:
        device: the torch device of the batches and of the torch network.
    """

    device: torch.device

    def check(self, config: DictConfig) -> None:
        """Raise ValueError if the framework cannot train the network of a run's configuration; read no data."""
        ...

    def evaluated(self, network: nn.Module, *, bf16: bool = False) -> Any:
        """Return a callable with the weights of `network` for evaluation and prediction."""
        ...

    def step(
        self, config: DictConfig, task: Task, model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Step:
        """Return the training step described by the run's configuration."""
        ...


class Torch:
    """Run in torch on the device named `device`."""

    def __init__(self, device: str):
        self.device = choose_device(device)

    def check(self, config: DictConfig) -> None:
        """Raise ValueError if both ``compile`` and ``grad_checkpointing`` are set.

        torch.compile already decides which activations to recompute.
        """
        if config.compile and config.grad_checkpointing:
            raise ValueError("compile=true and grad_checkpointing=true: set only one of them")

    def evaluated(self, network: nn.Module, *, bf16: bool = False) -> nn.Module:
        """Return the network on its device; callers run it under autocast."""
        return network.to(self.device)

    def step(
        self, config: DictConfig, task: Task, model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Step:
        """Return a data-parallel training step, in which each rank processes its portion of the batch."""
        return TorchStep.of(config, task, model, criterion, optimizer, self.device)


class Jax:
    """Run in JAX on the local devices of type `device`; torch stays on the CPU."""

    device = torch.device("cpu")

    def __init__(self, device: str):
        self._name = device

    def check(self, config: DictConfig) -> None:
        """Build the network with random weights and convert it, so that an unsupported one fails before data is read.

        With ``init``, the network depends on a checkpoint, so it is only checked when the training step is built.

        Raises:
            ValueError: the network or a loss term has no JAX counterpart, there are several processes, or an option is
                set that JAX does not support.
        """
        from ....models.nnx import twin

        if world_size() > 1 or config.accumulate > 1:
            raise ValueError(
                "framework=jax runs in a single process without gradient accumulation: remove torchrun and accumulate"
            )
        if config.ema is not None or config.grad_checkpointing:
            raise ValueError("framework=jax supports neither ema nor grad_checkpointing: remove them")
        for name, term in config.loss.get("terms", {}).items():
            if config.loss.weights.get(name) and getattr(get_object(term["_target_"]), "torch_only", False):
                raise ValueError(
                    f"framework=jax does not support the loss term {name!r}: remove it, or set loss.weights.{name}=0"
                )
        if config.init is None:
            twin(build(without_pretrained(plain(config)["model"]), num_classes=2))

    def evaluated(self, network: nn.Module, *, bf16: bool = False) -> Any:
        """Return the network's Flax twin on the first device."""
        from ...evaluation.jax_network import JaxNetwork

        return JaxNetwork.of(network, bf16=bf16, device=self._name)

    def step(
        self, config: DictConfig, task: Task, model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Step:
        """Return a training step over as many local devices as can split the batch evenly."""
        from ...evaluation.jax_network import local_devices
        from .jax_step import JaxStep

        return JaxStep(
            model,
            criterion,
            optimizer,
            devices=local_devices(self._name, config.recipe.batch_size),
            seed=config.seed,
            bf16=config.bf16,
            clip_norm=config.clip_norm,
            held=held_modules(model, frozen_stages=config.frozen_stages, norm_eval=config.norm_eval),
        )


def choose_framework(name: str, device: str) -> Framework:
    """Return the framework named `name`, "torch" or "jax", on the device named `device`."""
    if name == "torch":
        return Torch(device)
    if name == "jax":
        return Jax(device)
    raise ValueError(f"framework is {name!r}: choose 'torch' or 'jax'")


def framework_of(config: DictConfig) -> Framework:
    """Return the framework of a run's configuration; torch if the configuration predates the option."""
    return choose_framework(config.get("framework", "torch"), config.device)
