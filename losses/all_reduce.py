"""Sums over all the torch processes that share a batch.

Each process computes the loss of the whole batch, so that what it reports is the same everywhere. A gradient that
passes a sum is summed over the processes too: back-propagating one loss per process differentiates their sum, and
the mean over processes that DistributedDataParallel takes of it is the gradient of the one loss. Alone, where
torch.distributed has not been started, and for JAX, which spreads arrays by itself, nothing happens.
"""

from contextlib import suppress
from typing import Any

from .torch_and_jax import Array, is_torch

with suppress(ImportError):  # JAX may be alone
    import torch
    import torch.distributed as dist

    class _Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Array) -> Array:
            values = values.contiguous().clone()
            dist.all_reduce(values)
            return values

        @staticmethod
        def backward(ctx: Any, grad: Array) -> Array:
            grad = grad.contiguous().clone()
            dist.all_reduce(grad)
            return grad


def sum_over_processes(values: Array) -> Array:
    """Sum of every process's ``values``, of one shape in all; differentiable."""
    return _Sum.apply(values) if _shared(values) else values


def mean_over_processes(values: Array) -> Array:
    """Mean of every process's ``values``; the gradient of each process's loss stays what it was."""
    return sum_over_processes(values) / dist.get_world_size() if _shared(values) else values


def gather_from_processes(values: Array) -> Array:
    """Every process's ``values`` (n, ...), of one shape in all, one after the other; not differentiable."""
    if not _shared(values):
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def _shared(values: Array) -> bool:
    return is_torch(values) and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
