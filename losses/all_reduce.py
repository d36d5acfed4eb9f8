"""Differentiable sums over the ranks of torch.distributed, which share one batch.

Every rank computes the loss of the whole batch, so all ranks report the same number. A gradient that passes a sum is
summed over the ranks too: back-propagating one loss per rank differentiates their sum, and the mean over ranks that
DistributedDataParallel takes is the gradient of the one loss.

The functions return their input where torch.distributed is not initialised, and for JAX, which shards arrays itself.
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
    except ImportError:  # JAX alone: no array is shared, so nothing calls torch below
        Function = object


class _Sum(Function):
    """Sum over the ranks, forward and backward."""

    @staticmethod
    def forward(ctx: Any, values: Array) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        values = values.contiguous().clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Array) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


def sum_over_processes(values: Array) -> Array:
    """Return the sum of ``values`` over all ranks, which pass the same shape; differentiable."""
    return _Sum.apply(values) if _shared(values) else values


def mean_over_processes(values: Array) -> Array:
    """Return the mean of ``values`` over all ranks; the gradient of each rank's loss stays the same."""
    return sum_over_processes(values) / dist.get_world_size() if _shared(values) else values


def gather_from_processes(values: Array) -> Array:
    """Concatenate the ``values`` (n, ...) of all ranks, which pass the same shape; not differentiable."""
    if not _shared(values):
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def _shared(values: Array) -> bool:
    return is_torch(values) and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
