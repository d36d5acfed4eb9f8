"""Implementations to compare this project's criss-cross attention with, written for this comparison.

A peer takes query, key (N, D, H, W) and value (N, C, H, W) and returns (N, C, H, W). It computes in the dtype of its
inputs, as a user's own code would. Notation: L is the length of a row or column, M the number of heads.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

from ...kernels import criss_cross_attention

# The backward pass is timed alone, by running it repeatedly on the same graph.
torch._functorch.config.donated_buffer = False


class Peer(NamedTuple):
    """An implementation to compare.

    Attributes:
        function: query, key, value -> output, of torch or of JAX.
        attends: the positions that a query attends to: "cross" or "all".
        has_gradient: whether it is differentiable.
        devices: the types of device that it runs on.
    """

    function: Callable[..., Any]
    attends: str = "cross"
    has_gradient: bool = True
    devices: tuple[str, ...] = ("cpu", "cuda")


triton = partial(criss_cross_attention, backend="triton")
reference = partial(criss_cross_attention, backend="reference")


def cpu(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return this project's attention with ``backend="auto"``: the CPU operators, or the reference for small calls."""
    return criss_cross_attention(query, key, value)


def _masked_diagonal(energy: Tensor) -> Tensor:
    """Mask the diagonal of (..., L, L), because a position is a key of both its row and its column."""
    itself = torch.eye(energy.shape[-1], dtype=torch.bool, device=energy.device)
    return energy.masked_fill(itself, float("-inf"))


def einsum(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention as most reimplementations compute it: two einsums, one softmax, two einsums."""
    height, width = query.shape[-2:]
    column = _masked_diagonal(torch.einsum("ndhw,ndgw->nwhg", query, key)).permute(0, 2, 1, 3)  # n h w g
    row = torch.einsum("ndhw,ndhv->nhwv", query, key)
    column, row = torch.cat([column, row], dim=-1).softmax(dim=-1).split([height, width], dim=-1)
    return torch.einsum("nhwg,ncgw->nchw", column, value) + torch.einsum("nhwv,nchv->nchw", row, value)


@cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.compile(einsum)  # not on import, because importing the compiler takes seconds


def compiled_einsum(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return ``einsum``, compiled by torch.compile."""
    return _compiled()(query, key, value)


def bmm(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention by batched matrix products, with lines copied to (N * lines, channels, L) and back."""
    batch, _, height, width = query.shape

    def columns(array: Tensor) -> Tensor:
        return array.permute(0, 3, 1, 2).reshape(batch * width, -1, height)

    def rows(array: Tensor) -> Tensor:
        return array.permute(0, 2, 1, 3).reshape(batch * height, -1, width)

    column = _masked_diagonal(torch.bmm(columns(query).mT, columns(key)))
    column = column.view(batch, width, height, height).permute(0, 2, 1, 3)
    row = torch.bmm(rows(query).mT, rows(key)).view(batch, height, width, width)
    column, row = torch.cat([column, row], dim=-1).softmax(dim=-1).split([height, width], dim=-1)
    column = column.permute(0, 2, 1, 3).reshape(batch * width, height, height)
    out_column = torch.bmm(columns(value), column.mT).view(batch, width, -1, height).permute(0, 2, 3, 1)
    out_row = torch.bmm(rows(value), row.reshape(batch * height, width, width).mT)
    return out_column + out_row.view(batch, height, -1, width).permute(0, 2, 1, 3)


def _heads(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Split (N, positions, channels) into heads (N, M, positions, D).

    Library kernels need equal widths, so query and key are repeated for every D channels of the value.
    """
    width = query.shape[-1]
    heads = value.shape[-1] // width
    if heads * width != value.shape[-1]:
        raise ValueError(f"library attention needs C to be a multiple of D, got {value.shape[-1]} and {width}")
    query, key = (array[:, None].expand(-1, heads, -1, -1) for array in (query, key))
    return [query, key, value.unflatten(-1, (heads, width)).transpose(1, 2)]


def _attention_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return fused library attention over (N, positions, channels), and its log-sum-exp (N, positions)."""
    query, key, value = _heads(query, key, value)
    if not query.is_cuda:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=1.0)
    elif query.dtype == torch.float32:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True, scale=1.0)
    else:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=1.0)
    return out.transpose(1, 2).flatten(2), lse[:, 0, : query.shape[2]].float()


def axial_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return library attention along rows and columns, merged by log-sum-exp so that each position counts once."""
    query, key, value = (array.movedim(1, -1) for array in (query, key, value))  # n h w c
    batch, height, width, _ = query.shape
    out_row, lse_row = _attention_with_lse(*(array.flatten(0, 1) for array in (query, key, value)))
    out_row, lse_row = out_row.view(value.shape), lse_row.view(batch, height, width)
    columns = [array.transpose(1, 2).flatten(0, 1) for array in (query, key, value)]
    out_column, lse_column = _attention_with_lse(*columns)
    out_column = out_column.unflatten(0, (batch, width)).transpose(1, 2)
    lse_column = lse_column.view(batch, width, height).transpose(1, 2)

    lse_self = (query.float() * key.float()).sum(dim=-1)
    largest = torch.maximum(lse_row, lse_column)
    row, column, itself = (torch.exp(lse - largest)[..., None] for lse in (lse_row, lse_column, lse_self))
    out = (row * out_row + column * out_column - itself * value) / (row + column - itself)
    return out.to(value.dtype).movedim(-1, 1)


def non_local(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return full attention, computed by the library's fused kernels."""
    size = value.shape[-2:]
    query, key, value = _heads(*(array.flatten(2).mT for array in (query, key, value)))
    out = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return out.transpose(1, 2).flatten(2).mT.unflatten(-1, size)


def non_local_oracle(query: Tensor, key: Tensor, value: Tensor, rows: int = 2048) -> Tensor:
    """Return full attention, computed explicitly for ``rows`` rows of the (positions, positions) map at a time."""
    flat = [array.flatten(2).mT for array in (query, key, value)]
    parts = [(part @ flat[1].mT).softmax(dim=-1) @ flat[2] for part in flat[0].split(rows, dim=1)]
    return torch.cat(parts, dim=1).mT.unflatten(-1, value.shape[2:])


ORACLES: dict[str, Callable[..., Tensor]] = {"cross": reference, "all": non_local_oracle}
PEERS = {
    "triton": Peer(triton, devices=("cuda",)),
    "cpu": Peer(cpu, devices=("cpu",)),
    "reference": Peer(reference),
    "einsum": Peer(einsum),
    "bmm": Peer(bmm),
    "compiled_einsum": Peer(compiled_einsum),
    "axial_sdpa": Peer(axial_sdpa, has_gradient=False),  # the library's log-sum-exp has no gradient
    "non_local_sdpa": Peer(non_local, attends="all"),
}
