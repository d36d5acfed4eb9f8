"""A training step in torch."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Protocol, cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ...data import IGNORE_INDEX
from ...losses.all_reduce import sum_over_processes
from ..evaluation.tasks import Task
from ..runtime.distributed import parallel
from ..runtime.memory import enough_memory, process_peak_mib
from .nonfinite import Outcome, step_if


class Step(Protocol):
    """A training step, :class:`TorchStep` or :class:`engine.training.jax_step.JaxStep`."""

    def place(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Return a batch of the loader where the step needs it."""
        ...

    def __call__(self, images: Any, labels: Any, iteration: int) -> Outcome:
        """Train on a placed batch after `iteration` iterations; change nothing if loss or gradient is not finite."""
        ...

    def evaluated(self) -> Any:
        """Return the network as it is now, for a validation."""
        ...

    def write_back(self) -> None:
        """Copy weights and optimiser state into the torch network and its optimiser, before they are saved."""

    def peak_memory_mib(self) -> float:
        """Return the peak memory so far."""
        ...


def memory_format(config: DictConfig) -> torch.memory_format:
    """Return the memory format of a run's network and its images."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def on_device(model: nn.Module, device: torch.device, config: DictConfig) -> nn.Module:
    """Move a run's network to the device, in the run's memory format."""
    return cast(Any, model).to(device, memory_format=memory_format(config))  # torch's stubs lack memory_format


class TorchStep:
    """:func:`train_step` with the settings of a run; the processes of ``torchrun`` share each batch.

    Args:
        task: says how the model is called.
        model: the network, on its device.
        criterion: (output, labels) -> total, terms.
        optimizer: the optimiser of the model's parameters.
        device: the device of the model.
        memory_format: the memory format of images.
        compile: run the forward pass through torch.compile.
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
        **options: Any,
    ):
        self.task, self.model, self.criterion, self.optimizer = task, model, criterion, optimizer
        self.device, self.memory_format, self.options = device, memory_format, options
        self._forward = parallel(model, device)
        if compile:
            self._forward = cast(nn.Module, torch.compile(self._forward))

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
        """Return the step that a run's configuration describes."""
        return cls(
            task,
            model,
            criterion,
            optimizer,
            device=device,
            memory_format=memory_format(config),
            compile=config.compile,
            bf16=config.bf16,
            accumulate=config.accumulate,
            clip_norm=config.clip_norm,
            keep_buffers=config.skip_nonfinite > 0,
        )

    def place(self, images: Any, labels: Any) -> tuple[Any, Any]:
        return self.task.to_device(images, labels, self.device, self.memory_format)

    def __call__(self, images: Any, labels: Any, iteration: int) -> Outcome:
        return train_step(self.task, self._forward, self.criterion, self.optimizer, images, labels, **self.options)

    def evaluated(self) -> nn.Module:
        return self.model

    def write_back(self) -> None:
        """Do nothing: the torch network is trained in place."""

    def peak_memory_mib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return process_peak_mib()


@enough_memory(
    "a training step",
    "turn down recipe.batch_size or recipe.train_transform.crop_size, take the batch in pieces with accumulate=2, or "
    "give bf16=true",
)
def train_step(
    task: Task,
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Any,
    labels: Any,
    *,
    bf16: bool = False,
    accumulate: int = 1,
    clip_norm: float | None = None,
    keep_buffers: bool = False,
) -> Outcome:
    """Make one optimiser step, or skip it if the loss or the gradient is not finite.

    With a fused optimiser, the host does not synchronise with the device and can queue the next step meanwhile.

    Args:
        task: says how the model is called.
        model: the network, or a wrapper that averages gradients over processes.
        criterion: (output, labels) -> total, terms.
        optimizer: the optimiser of the model's parameters.
        images: this process's part of the batch, on the model's device.
        labels: the labels of these images.
        bf16: run the forward pass under autocast.
        accumulate: the number of pieces that the batch goes through the network in, one by one, to save memory. A
            piece is weighted by its share of the valid pixels, so that the cross entropy is that of the whole batch.
            Batch norm, OHEM and the category consistent loss see one piece at a time.
        clip_norm: the norm that the gradient of all parameters is clipped to.
        keep_buffers: if the step is skipped, keep the running statistics of batch norm, too.

    Raises:
        MemoryError: out of memory; the message says what to turn down.
    """
    optimizer.zero_grad(set_to_none=True)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if keep_buffers else []
    total: Any = 0
    report: dict[str, Any] = {}
    for last, share, images_part, labels_part in _pieces(images, labels, accumulate):
        unsynchronised = nullcontext() if last else getattr(model, "no_sync", nullcontext)()
        with unsynchronised:
            with torch.autocast(images[0].device.type, torch.bfloat16, enabled=bf16):
                output = task.forward(model, images_part, labels_part)
            loss, terms = criterion(output, labels_part)
            (share * loss).backward()
        total = total + share * loss.detach()
        report = {name: report.get(name, 0) + share * term for name, term in terms.items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, grad_norm)
    # Loss and gradients are the same in every process, so all of them decide alike.
    finite = total.isfinite() & grad_norm.isfinite()
    step_if(finite, optimizer)
    for buffer, before in buffers:
        buffer.copy_(torch.where(finite, buffer, before))
    return Outcome(total, report, grad_norm)


def _pieces(images: Any, labels: Any, number: int) -> Iterator[tuple[bool, Tensor | float, Any, Any]]:
    """Yield (is it the last, its share of the batch, images, labels) of each of `number` equal pieces."""
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
