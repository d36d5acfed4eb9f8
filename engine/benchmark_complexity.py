"""What attention adds to a network: the paper's Tables 2 and 5.

GFLOPs are by the authors' formula (their answer in CCNet's issue 2). Memory is counted in two ways: the bytes
that autograd keeps for the backward pass and would not keep without the module, on any machine; and what one
forward and backward adds to the allocator's peak, on a GPU.
"""

import csv
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from kernels import criss_cross_residual
from kernels.recompute import recomputed_projection

from . import benchmark_peers as peers
from .benchmark_compare import provenance

# (GFLOPs, MB) for 1x3x769x769 as printed in the paper; float32.
PUBLISHED = {"rcca R=1": (8.3, None), "rcca R=2": (16.5, 127), "rcca R=3": (24.7, None), "non-local": (108, 1411)}


def published_gflops(height: int, width: int, c: int, d: int, keys: int) -> float:
    """The authors' count: three 1x1 convolutions with bias, scores, weighted sum."""
    return 2 * height * width * ((c + 1) * (2 * d + c) + keys * (d + c)) / 1e9


class Block(nn.Module):
    """Projections, attention, gamma and residual, R times with shared weights; nothing else."""

    def __init__(self, c: int, d: int, recurrence: int, *, non_local: bool = False, recompute: bool = False):
        super().__init__()
        self.sizes = [d, d, c]
        self.recurrence, self.non_local, self.recompute = recurrence, non_local, recompute
        self.projection = nn.Conv2d(c, 2 * d + c, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            again = recomputed_projection(self.projection, image) if self.recompute else None
            with again or nullcontext(self.projection(image)) as projected:
                query, key, value = projected.split(self.sizes, dim=1)
                if self.non_local:
                    energy = torch.einsum("ndp,ndq->npq", query.flatten(2), key.flatten(2))
                    out = torch.einsum("npq,ncq->ncp", energy.softmax(dim=-1), value.flatten(2))
                    image = self.gamma * out.view_as(value) + image
                else:
                    image = criss_cross_residual(query, key, value, image, self.gamma)
        return image


class PlainBlock(Block):
    """The same with einsums for the attention: what a network without kernels pays."""

    def forward(self, image: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            query, key, value = self.projection(image).split(self.sizes, dim=1)
            image = self.gamma * peers.einsum(query, key, value) + image
        return image


def saved_bytes(block: nn.Module, image: Tensor) -> int:
    """Bytes kept for the backward pass beyond the input, which a network keeps without the block as well."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (image, *block.parameters())}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(image)
    del out
    return sum(size for address, size in storages.items() if address not in known)
