"""Count what attention adds to the cost of a network, as in the paper's Tables 2 and 5.

GFLOPs follow the authors' formula (their answer in CCNet's issue 2). Memory is measured in two ways: on any machine, as
the bytes that autograd saves for the backward pass because of the module; on a GPU, as the increase in the allocator's
peak during one forward and backward pass.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import conv2d

from ..engine.drawing.tables import Table
from ..engine.evaluation.cost import Storages
from ..engine.runtime.provenance import provenance
from ..kernels.call import Call, Options
from ..kernels.precision import float32_precision
from ..kernels.torch_ops import operators
from ..kernels.torch_ops.recompute import recomputed_projection
from .comparison import peers
from .failures import require_none, tolerated

# (GFLOPs, MB) from the paper, for an input of 1x3x769x769; memory in float32.
PAPER = {
    ("criss-cross", 1): (8.3, 53),
    ("criss-cross", 2): (16.5, 127),
    ("criss-cross", 3): (24.7, 208),
    ("non-local", 1): (108, 1411),
    ("non-local", 2): (216, 2820),
}


def published_gflops(height: int, width: int, c: int, d: int, keys: int) -> float:
    """Return GFLOPs as the authors count them: three 1x1 convolutions with bias, scores and weighted sum.

    Args:
        height, width: size of the feature map in pixels.
        c, d: number of value and of query channels.
        keys: number of keys of each pixel.
    """
    return 2 * height * width * ((c + 1) * (2 * d + c) + keys * (d + c)) / 1e9


def fused(query: Tensor, key: Tensor, value: Tensor, image: Tensor, gamma: Tensor) -> Tensor:
    """Return gamma times the attention, computed by the Triton kernels, plus the image."""
    # Bypasses the selection of a backend, because the kernels need no GPU on fake tensors.
    options = Options(axes=(0, 1), scale=1.0, precision=float32_precision(), channel_axis=1, backend="triton")
    return operators.attend(Call(query, key, value, options, image, gamma))


def einsum(query: Tensor, key: Tensor, value: Tensor, image: Tensor, gamma: Tensor) -> Tensor:
    """Return gamma times the attention, computed by einsums, plus the image."""
    return gamma * peers.einsum(query, key, value) + image


def non_local(query: Tensor, key: Tensor, value: Tensor, image: Tensor, gamma: Tensor) -> Tensor:
    """Return gamma times full attention, plus the image."""
    energy = torch.einsum("ndp,ndq->npq", query.flatten(2), key.flatten(2))
    out = torch.einsum("npq,ncq->ncp", energy.softmax(dim=-1), value.flatten(2))
    return gamma * out.view_as(value) + image


class Block(nn.Module):
    """Projections, attention, gamma and residual, applied R times with shared weights.

    Args:
        attend: query, key, value, image and gamma -> the image after one loop, such as :func:`fused`.
        c, d: number of value and of query channels.
        recurrence: number of loops R.
        recompute: whether to recompute the projections in the backward pass.
        **factory: the device and dtype of the weights.
    """

    def __init__(self, attend: Callable, c: int, d: int, recurrence: int, recompute: bool, **factory: Any):
        super().__init__()
        self.attend, self.sizes, self.recurrence, self.recompute = attend, [d, d, c], recurrence, recompute
        self.projection = nn.Conv2d(c, 2 * d + c, 1, **factory)
        self.gamma = nn.Parameter(torch.zeros(1, **factory))

    def forward(self, image: Tensor) -> Tensor:
        """Return the features (N, C, H, W) after R loops."""
        for _ in range(self.recurrence):
            if self.recompute:
                projection = recomputed_projection(conv2d, image, *self.projection.parameters())
            else:
                projection = nullcontext(self.projection(image))
            with projection as projected:
                image = self.attend(*projected.split(self.sizes, dim=1), image, self.gamma)
        return image


def saved_bytes(make_block: Callable[..., nn.Module], shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the bytes alive after a forward pass, excluding its input, its output and the weights.

    The input is excluded because a network without the block would save it for the next layer, just as a network with
    the block saves the output. Fake tensors are used, so nothing is computed.
    """
    with FakeTensorMode():
        block = make_block(dtype=dtype)
        image = torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
        with Storages() as storages:
            out = block(image)
        known = {tensor.untyped_storage()._cdata for tensor in (image, out, *block.parameters())}
        return sum(size for key, size in storages.alive().items() if key not in known)


def peak_bytes(
    make_block: Callable[..., nn.Module], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> int:
    """Return the increase in the allocator's peak in bytes, over a forward and backward pass with weight gradients."""
    block = make_block(device=device, dtype=dtype)
    image = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    peak = 0
    for _ in range(2):  # the first pass also allocates library workspaces
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        block(image).backward(torch.ones_like(image))
        peak = torch.cuda.max_memory_allocated(device) - before
        block.zero_grad(set_to_none=True)
        image.grad = None
    return peak


def count_complexity(config: DictConfig, device: torch.device) -> str:
    """Count the cost of every variant and return the table; append each row to ``<output>_complexity.csv`` immediately.

    Raises:
        ValueError: the peak memory of some variants was not measured; the table is printed first.
    """
    height, width = (-(-size // config.complexity.output_stride) for size in config.complexity.crop)
    c, d = config.value_channels, config.query_channels
    shape = (1, c, height, width)
    variants = [
        ("non-local", "einsum", non_local, False, (1, 2)),
        ("criss-cross", "einsum", einsum, False, (1, 2, 3)),
        ("criss-cross", "fused", fused, False, (1, 2, 3)),
        ("criss-cross", "fused, projections recomputed", fused, True, (1, 2, 3)),
    ]
    crop = "x".join(map(str, config.complexity.crop))
    about = {"crop": crop} | provenance(device)

    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for attention, implementation, attend, recompute, recurrences in variants:
        keys = height * width if attention == "non-local" else height + width + 1
        for recurrence in recurrences:
            make_block = partial(Block, attend, c, d, recurrence, recompute)
            gflops, megabytes = PAPER[attention, recurrence]
            row: dict[str, Any] = {"attention": attention, "R": recurrence, "implementation": implementation}
            row["gflops"] = round(recurrence * published_gflops(height, width, c, d, keys), 2)
            row["paper_gflops"] = gflops
            for dtype in (torch.float32, torch.bfloat16):
                name = str(dtype)[6:]
                row[f"saved_mb_{name}"] = round(saved_bytes(make_block, shape, dtype) / 1e6, 1)
                row[f"peak_mb_{name}"] = "not measured"
                if device.type == "cuda":
                    with tolerated(f"peak memory of {attention}, {implementation}, R = {recurrence}, {name}", failures):
                        row[f"peak_mb_{name}"] = round(peak_bytes(make_block, shape, dtype, device) / 1e6, 1)
            rows.append(row | {"paper_mb_float32": megabytes})
            Table.of_records([rows[-1] | about]).append_csv(Path(f"{config.output}_complexity.csv"))
    table = f"added by attention at 1x3x{crop}, C={c}, D={d}\n{Table.of_records(rows).text()}"
    require_none(failures, table)
    return table
