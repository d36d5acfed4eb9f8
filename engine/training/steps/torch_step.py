"""A training step in torch."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol, cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ....data import IGNORE_INDEX
from ....losses.all_reduce import sum_over_processes
from ...evaluation.tasks import Task
from ...runtime.distributed import average_gradients, parallel, synchronise, world_size
from ...runtime.memory import enough_memory, process_peak_mib
from ...runtime.provenance import provenance
from ..setup.checkpointing import checkpoint_gradients
from ..setup.freezing import held_modules
from .nonfinite import Outcome, step_if


class Step(Protocol):
    """A training step, :class:`TorchStep` or :class:`ccnet.engine.training.steps.jax_step.JaxStep`."""

    def place(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Move a batch from the loader to the devices that the step runs on."""
        ...

    def __call__(self, images: Any, labels: Any, iteration: int) -> Outcome:
        """Train on the placed batch of `iteration` (0-based); skip the update if the loss or gradient is not finite."""
        ...

    def evaluated(self) -> Any:
        """Return the current network for validation."""
        ...

    def write_back(self) -> None:
        """Copy the weights and the optimiser state into the torch network and its optimiser before saving."""

    def peak_memory_mib(self) -> float:
        """Return the peak memory so far, in MiB."""
        ...

    def provenance(self) -> dict[str, str]:
        """Return the machine that the step runs on, the versions, the commit and the date."""
        ...


def memory_format(config: DictConfig) -> torch.memory_format:
    """Return the memory format of a run's network and images."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def on_device(model: nn.Module, device: torch.device, config: DictConfig) -> nn.Module:
    """Move a run's network to the device, in the run's memory format."""
    return cast(Any, model).to(device, memory_format=memory_format(config))  # torch's stubs lack memory_format


class TorchStep:
    """:func:`train_step` with the settings of a run; under ``torchrun``, each batch is split across the processes.

    With several processes, the first step averages the gradients itself and shows which parameters have one. DDP, which
    averages them during the backward pass of later steps, needs to know that, so it wraps the model only afterwards.

    Args:
        task: the task, which calls the model.
        model: the network, on its device.
        criterion: (output, labels) -> total, terms.
        optimizer: the optimiser of the model's parameters.
        device: the device of the model.
        memory_format: the memory format of the images.
        compile: run the forward pass through torch.compile.
        grad_checkpointing: recompute the activations of the backbone; see :func:`checkpoint_gradients`.
        frozen_stages, norm_eval: select the modules that stay in eval mode; see :func:`held_modules`.
        **options: further arguments of :func:`train_step`.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
        compile: bool = False,
        grad_checkpointing: bool = False,
        frozen_stages: int = 0,
        norm_eval: bool = False,
        **options: Any,
    ):
        self.task, self.model, self.criterion, self.optimizer = task, model, criterion, optimizer
        self.device, self.memory_format, self.options = device, memory_format, options
        self._compile = compile
        synchronise(model, device)
        if grad_checkpointing:
            checkpoint_gradients(model)
        self._held = list(held_modules(model, frozen_stages=frozen_stages, norm_eval=norm_eval).values())
        self._forward: nn.Module | None = None if world_size() > 1 else self._compiled(model)

    def _compiled(self, model: nn.Module) -> nn.Module:
        return cast(nn.Module, torch.compile(model)) if self._compile else model

    @classmethod
    def of(
        cls,
        config: DictConfig,
        task: Task,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> "TorchStep":
        """Return the training step described by a run's configuration."""
        return cls(
            task,
            model,
            criterion,
            optimizer,
            device=device,
            memory_format=memory_format(config),
            compile=config.compile,
            grad_checkpointing=config.grad_checkpointing,
            frozen_stages=config.frozen_stages,
            norm_eval=config.norm_eval,
            bf16=config.bf16,
            accumulate=config.accumulate,
            clip_norm=config.clip_norm,
            keep_buffers=config.skip_nonfinite > 0,
        )

    def place(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Copy a batch to the device, without waiting for the copy."""
        return self.task.to_device(images, labels, self.device, self.memory_format)

    def __call__(self, images: Any, labels: Any, iteration: int) -> Outcome:
        """Call :func:`train_step` with the batch of `iteration` (0-based)."""
        model = self._forward or self.model
        averaged = self._forward is not None
        for module in self._held:  # a validation returns the whole network to training mode
            module.training = False
        criterion = (
            partial(self.criterion, iteration=iteration) if getattr(self.criterion, "ramp", {}) else self.criterion
        )
        outcome = train_step(
            self.task, model, criterion, self.optimizer, images, labels, averaged=averaged, **self.options
        )
        if not averaged:
            self._forward = self._compiled(parallel(self.model, self.device))
        return outcome

    def evaluated(self) -> nn.Module:
        """Return the network that is trained."""
        return self.model

    def write_back(self) -> None:
        """Do nothing: the torch network is trained in-place."""

    def peak_memory_mib(self) -> float:
        """Return the peak memory so far in MiB: the GPU's, or the process's on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return process_peak_mib()

    def provenance(self) -> dict[str, str]:
        """Return the machine, versions, commit and date; see :func:`ccnet.engine.runtime.provenance`."""
        return provenance(self.device)


@enough_memory(
    "a training step",
    "reduce recipe.batch_size or recipe.train_transform.crop_size, split the batch with accumulate=2, or set bf16=true",
)
def train_step(
    task: Task,
    model: nn.Module,
    criterion: Callable[..., tuple[Tensor, dict[str, Tensor]]],
    optimizer: torch.optim.Optimizer,
    images: Any,
    labels: Any,
    *,
    bf16: bool = False,
    accumulate: int = 1,
    clip_norm: float | None = None,
    keep_buffers: bool = False,
    averaged: bool = True,
) -> Outcome:
    """Perform one optimiser step, or skip it if the loss or the gradient is not finite.

    With a fused optimiser, the host does not synchronise with the device and can already queue the next step.

    Args:
        task: the task, which calls the model.
        model: the network, or a wrapper that averages its gradients over the processes.
        criterion: (output, labels) -> total, terms.
        optimizer: the optimiser of the model's parameters.
        images: this process's portion of the batch, on the model's device.
        labels: the labels of these images.
        bf16: run the forward pass under bfloat16 autocast.
        accumulate: the number of micro-batches that the batch is split into to save memory. Each is weighted by its
            fraction of the valid pixels, so that a mean over pixels, such as the cross entropy, is that of the whole
            batch. Batch norm and all other losses see one micro-batch at a time.
        clip_norm: the maximum gradient norm over all parameters, for clipping; None to disable.
        keep_buffers: also restore the running statistics of batch norm if the step is skipped.
        averaged: whether the backward pass already averages the gradients over the processes; True for one process.

    Raises:
        MemoryError: out of memory; the message lists the settings to reduce.
    """
    optimizer.zero_grad(set_to_none=True)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if keep_buffers else []
    total: Any = 0
    report: dict[str, Any] = {}
    for last, share, images_part, labels_part in _pieces(images, labels, accumulate):
        no_sync: Any = getattr(model, "no_sync", nullcontext)
        unsynchronised = nullcontext() if last else no_sync()
        with unsynchronised:
            with torch.autocast(images[0].device.type, torch.bfloat16, enabled=bf16):
                output = task.forward(model, images_part, labels_part)
            loss, terms = criterion(output, labels_part)
            (share * loss).backward()
        total = total + share * loss.detach()
        report = {name: report.get(name, 0) + share * term for name, term in terms.items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not averaged:
        average_gradients(parameters)
    grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, grad_norm)
    # Loss and gradients are the same in every process, so all of them make the same decision.
    finite = total.isfinite() & grad_norm.isfinite()
    step_if(finite, optimizer)
    for buffer, before in buffers:
        buffer.copy_(torch.where(finite, buffer, before))
    return Outcome(total, report, grad_norm)


def _pieces(images: Any, labels: Any, number: int) -> Iterator[tuple[bool, Tensor | float, Any, Any]]:
    """Yield (is last, fraction of the batch, images, labels) for each of `number` equal micro-batches."""
    if number == 1:
        yield True, 1.0, images, labels
        return
    size = len(images) // number
    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    shares = [1 / number] * number
    if isinstance(labels, Tensor):
        valid = sum_over_processes(torch.stack([(labels[part] != IGNORE_INDEX).sum() for part in parts]))
        shares = valid / valid.sum().clamp(min=1)
    for part, share in zip(parts, shares, strict=True):
        yield part is parts[-1], share, images[part], labels[part]
