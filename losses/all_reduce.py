"""Reductions over the ranks of torch.distributed, which share one global batch.

Every rank computes the loss of the global batch, so all ranks report the same value. The backward pass of a sum also
sums over the ranks: each rank back-propagates its own copy of the loss, which differentiates the sum of the copies,
and DistributedDataParallel's average over the ranks turns this into the gradient of a single copy.

The functions return their input if torch.distributed is not initialised, and for JAX, which shards arrays itself.
"""

from typing import TYPE_CHECKING, Any

from .torch_and_jax import Array, is_torch

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from torch.autograd import Function
else:
    try:
        import torch
        import torch.distributed as dist
        from torch.autograd import Function
    except ImportError:  # JAX only: the functions return their input, so torch is never called
        Function = object


class _Sum(Function):
    """All-reduce (sum) over the ranks in both the forward and the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Array) -> Array:
        values = values.contiguous().clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Array) -> Array:  # pyrefly: ignore[bad-override]
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


def sum_over_processes(values: Array) -> Array:
    """Return the differentiable sum of ``values`` over all ranks; the shape must be the same on every rank."""
    return _Sum.apply(values) if _shared(values) else values


def mean_over_processes(values: Array) -> Array:
    """Return the mean of ``values`` over all ranks; the backward pass leaves each rank's gradient unscaled."""
    return sum_over_processes(values) / dist.get_world_size() if _shared(values) else values


def gather_from_processes(values: Array) -> Array:
    """Concatenate the ``values`` (n, ...) of all ranks, which must have equal shapes; not differentiable."""
    if not _shared(values):
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def concatenate_processes(values: Array) -> Array:
    """Concatenate the ``values`` (n, ...) of all ranks, which must have equal shapes; differentiable."""
    if not _shared(values):
        return values
    parts = [torch.zeros_like(values) for _ in range(dist.get_world_size())]
    parts[dist.get_rank()] = values
    return sum_over_processes(torch.cat(parts))


def _shared(values: Array) -> bool:
    return is_torch(values) and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
