"""Sums over all the processes that share a batch.

Each process computes the loss of the whole batch, so that what it reports is the same everywhere. A gradient that
passes a sum is summed over the processes too: back-propagating one loss per process differentiates their sum, and
the mean over processes that DistributedDataParallel takes of it is the gradient of the one loss. Alone, and where
torch.distributed has not been started, nothing happens.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def shared() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of every process's ``values``, of one shape in all; differentiable."""
    return _Sum.apply(values) if shared() else values


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean of every process's ``values``; the gradient of each process's loss stays what it was."""
    return sum_over_processes(values) / dist.get_world_size() if shared() else values


def gather_from_processes(values: Tensor) -> Tensor:
    """Every process's ``values`` (n, ...), of one shape in all, one after the other; not differentiable."""
    if not shared():
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        values = values.contiguous().clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad
