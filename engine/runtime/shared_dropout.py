"""Dropout whose masks do not depend on the number of processes that a batch is split across."""

import torch.distributed as dist
from torch import Tensor, nn


class SharedDropout2d(nn.Dropout2d):
    """``nn.Dropout2d`` that draws the mask of the whole batch in every rank, and applies the rank's own rows.

    The random generators of all ranks must be in the same state; a single process with the whole batch and the same
    state draws the same mask. Every rank holds an equal, contiguous part of the batch.

    Args:
        p: probability of zeroing a channel.
    """

    def __init__(self, p: float):
        super().__init__(p)
        self._rank, self._processes = dist.get_rank(), dist.get_world_size()

    def forward(self, input: Tensor) -> Tensor:
        """Zero entire channels of (N, C, *S); the shape is unchanged."""
        if not self.training or not self.p:
            return input
        size = len(input)
        mask = input.new_empty(size * self._processes, input.shape[1], *[1] * (input.ndim - 2))
        own, kept = self._rank * size, 1 - self.p
        return input * mask.bernoulli_(kept).div_(kept or 1)[own : own + size]


def share_dropout(network: nn.Module) -> None:
    """Replace every ``nn.Dropout2d`` of the network by a :class:`SharedDropout2d`."""
    for name, child in network.named_children():
        if isinstance(child, nn.Dropout2d):
            setattr(network, name, SharedDropout2d(child.p))
        else:
            share_dropout(child)
