"""Batch norm and dropout whose results do not depend on the number of processes that a batch is split across."""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...losses.all_reduce import sum_over_processes


class SharedBatchNorm(_BatchNorm):
    """Device-independent version of ``nn.SyncBatchNorm``, which only runs on GPUs.

    The variance is computed in a second pass, which takes another all-reduce but avoids cancellation.

    Args:
        norm: the layer to replace, torch's or timm's with a fused activation; its parameters and buffers are reused.
    """

    def __init__(self, norm: _BatchNorm):
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.training = norm.training
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.drop: Any = getattr(norm, "drop", nn.Identity())
        self.act: Any = getattr(norm, "act", nn.Identity())

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel of (N, C, *S); the shape is unchanged."""
        features = input
        if not self.training:
            return self.act(self.drop(super().forward(features)))
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        axes = [0, *range(2, features.ndim)]
        own = wide.new_full((1,), features.numel() // features.shape[1])
        sums = sum_over_processes(torch.cat([wide.sum(axes), own]))
        number = sums[-1].detach()
        by_channel = (1, -1, *[1] * (features.ndim - 2))
        mean = (sums[:-1] / number).reshape(by_channel)
        centred = wide - mean
        variance = sum_over_processes((centred * centred).sum(axes)) / number
        if self.track_running_stats:
            self._remember(mean.detach().flatten(), variance.detach() * number / (number - 1).clamp(min=1))
        normal = centred * (variance + self.eps).rsqrt().reshape(by_channel)
        if self.affine:
            normal = normal * self.weight.reshape(by_channel) + self.bias.reshape(by_channel)
        return self.act(self.drop(normal.to(features.dtype)))

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        tracked, running_mean, running_var = self.num_batches_tracked, self.running_mean, self.running_var
        assert tracked is not None and running_mean is not None and running_var is not None  # they are tracked
        tracked.add_(1)
        share = 1 / tracked if self.momentum is None else self.momentum
        running_mean.lerp_(mean.to(running_mean.dtype), share)
        running_var.lerp_(variance.to(running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept inputs with any number of dimensions."""


def share_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace the network's batch norms with synchronised ones that reuse their parameters; return the network."""
    if device.type == "cuda":
        return convert_sync_batchnorm(network)
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            setattr(network, name, SharedBatchNorm(child))
        else:
            share_batch_norm(child, device)
    return network


class SharedDropout2d(nn.Dropout2d):
    """``nn.Dropout2d`` that draws the mask of the global batch on every rank and applies the rank's own rows.

    The random generators of all ranks must be in the same state; a single process with the global batch and the same
    state draws the same mask. Every rank holds an equal, contiguous part of the batch.

    Args:
        p: the probability of zeroing a channel.
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
    """Replace every ``nn.Dropout2d`` of the network with a :class:`SharedDropout2d`."""
    for name, child in network.named_children():
        if isinstance(child, nn.Dropout2d):
            setattr(network, name, SharedDropout2d(child.p))
        else:
            share_dropout(child)
