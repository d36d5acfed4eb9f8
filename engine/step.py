"""One step of the optimiser."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from data import IGNORE_INDEX
from engine.state import check_finite
from engine.tasks import Task
from losses.processes import sum_over_processes


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise MemoryError(
            "a training step needs more memory than there is: turn down recipe.batch_size or recipe.train_transform."
            f"crop_size, take the batch in pieces with accumulate=2, or give bf16=true. {str(error).splitlines()[0]}"
        ) from error


@_enough_memory()
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
) -> tuple[Tensor, dict[str, Tensor]]:
    """One optimiser step; returns the loss and its terms.

    Args:
        images, labels: this process's part of the batch.
        bf16: forward under autocast.
        accumulate: pieces in which the batch goes through the network, one after the other, for less memory. Each
            counts by its share of the valid pixels, so that cross entropy stays that of the whole batch. Batch norm,
            OHEM and the category consistent loss see a piece at a time.
        clip_norm: length to which the gradient of all parameters is shortened; it is reported as "grad_norm".

    Raises:
        NonFiniteLoss: before the step, in every process alike.
        MemoryError: out of memory, with what to turn down.
    """
    optimizer.zero_grad(set_to_none=True)
    total, report = 0, {}
    for last, share, images_part, labels_part in _pieces(images, labels, accumulate):
        alone = nullcontext() if last else getattr(model, "no_sync", nullcontext)()
        with alone:
            with torch.autocast(images[0].device.type, torch.bfloat16, enabled=bf16):
                output = task.forward(model, images_part, labels_part)
            loss, terms = criterion(output, labels_part)
            check_finite(loss, terms)
            (share * loss).backward()
        total = total + share * loss.detach()
        report = {name: report.get(name, 0) + share * term for name, term in terms.items()}
    if clip_norm is not None:
        report["grad_norm"] = nn.utils.clip_grad_norm_(
            [parameter for group in optimizer.param_groups for parameter in group["params"]], clip_norm
        )
    optimizer.step()
    return total, report


def _pieces(images: Any, labels: Any, number: int) -> Iterator[tuple[bool, Tensor | float, Any, Any]]:
    """(whether it is the last, its share of the batch, images, labels) of each of ``number`` equal pieces."""
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
