"""What attention adds to a network: the paper's Tables 2 and 5.

GFLOPs are by the authors' formula (their answer in CCNet's issue 2). Memory is counted in two ways: the bytes
that autograd keeps for the backward pass and would not keep without the module, on any machine; and what one
forward and backward adds to the allocator's peak, on a GPU.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..engine.evaluation.cost import Storages
from ..kernels.call import Call, Options
from ..kernels.precision import float32_precision
from ..kernels.torch_ops import operators
from ..kernels.torch_ops.recompute import recomputed_projection
from . import peers as peers
from .compare import append_csv, provenance, table

# (GFLOPs, MB) as the paper prints them for 1x3x769x769; its memory is float32.
PAPER = {
    ("criss-cross", 1): (8.3, 53),
    ("criss-cross", 2): (16.5, 127),
    ("criss-cross", 3): (24.7, 208),
    ("non-local", 1): (108, 1411),
    ("non-local", 2): (216, 2820),
}


def published_gflops(height: int, width: int, c: int, d: int, keys: int) -> float:
    """The authors' count: three 1x1 convolutions with bias, scores, weighted sum."""
    return 2 * height * width * ((c + 1) * (2 * d + c) + keys * (d + c)) / 1e9


def fused(query: Tensor, key: Tensor, value: Tensor, image: Tensor, gamma: Tensor) -> Tensor:
    # Past the choice of a backend: under fake tensors the kernels need no GPU.
    options = Options(axes=(0, 1), scale=1.0, precision=float32_precision(), channel_axis=1, backend="triton")
    return operators.attend(Call(query, key, value, options, image, gamma))


def einsum(query: Tensor, key: Tensor, value: Tensor, image: Tensor, gamma: Tensor) -> Tensor:
    return gamma * peers.einsum(query, key, value) + image


def non_local(query: Tensor, key: Tensor, value: Tensor, image: Tensor, gamma: Tensor) -> Tensor:
    energy = torch.einsum("ndp,ndq->npq", query.flatten(2), key.flatten(2))
    out = torch.einsum("npq,ncq->ncp", energy.softmax(dim=-1), value.flatten(2))
    return gamma * out.view_as(value) + image


class Block(nn.Module):
    """Projections, attention, gamma and residual, R times with shared weights, and nothing else."""

    def __init__(self, attend: Callable, c: int, d: int, recurrence: int, recompute: bool, **factory):
        super().__init__()
        self.attend, self.sizes, self.recurrence, self.recompute = attend, [d, d, c], recurrence, recompute
        self.projection = nn.Conv2d(c, 2 * d + c, 1, **factory)
        self.gamma = nn.Parameter(torch.zeros(1, **factory))

    def forward(self, image: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            if self.recompute:
                projection = recomputed_projection(self.projection, image)
            else:
                projection = nullcontext(self.projection(image))
            with projection as projected:
                image = self.attend(*projected.split(self.sizes, dim=1), image, self.gamma)
        return image


def saved_bytes(make_block: Callable[..., nn.Module], shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes alive after a forward pass, but for its input, its result and the weights.

    The input is not counted: without the block, the network keeps it for its next layer, as it keeps the
    result with it. Nothing is computed.
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
    """What a forward and a backward add to the allocator's peak, gradients of the weights included."""
    block = make_block(device=device, dtype=dtype)
    image = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    for _ in range(2):  # the first also allocates what libraries keep
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        block(image).backward(torch.ones_like(image))
        peak = torch.cuda.max_memory_allocated(device) - before
        block.zero_grad(set_to_none=True)
        image.grad = None
    return peak


def complexity(config: DictConfig, device: torch.device) -> str:
    """Count, append to ``<output>_complexity.csv``, and return the table."""
    height, width = (-(-size // config.complexity.output_stride) for size in config.complexity.crop)
    c, d = config.value_channels, config.query_channels
    shape = (1, c, height, width)
    variants = [
        ("non-local", "einsum", non_local, False, (1, 2)),
        ("criss-cross", "einsum", einsum, False, (1, 2, 3)),
    ]
    variants += [("criss-cross", "fused", fused, False, (1, 2, 3))]
    variants += [("criss-cross", "fused, projections recomputed", fused, True, (1, 2, 3))]

    rows = []
    for attention, implementation, attend, recompute, recurrences in variants:
        keys = height * width if attention == "non-local" else height + width + 1
        for recurrence in recurrences:

            def make_block(attend=attend, recurrence=recurrence, recompute=recompute, **factory):
                return Block(attend, c, d, recurrence, recompute, **factory)

            gflops, megabytes = PAPER[attention, recurrence]
            row = {"attention": attention, "R": recurrence, "implementation": implementation}
            row["gflops"] = round(recurrence * published_gflops(height, width, c, d, keys), 2)
            row["paper_gflops"] = gflops
            for dtype in (torch.float32, torch.bfloat16):
                name = str(dtype)[6:]
                row[f"saved_mb_{name}"] = round(saved_bytes(make_block, shape, dtype) / 1e6, 1)
                row[f"peak_mb_{name}"] = "not measured"
                if device.type == "cuda":
                    row[f"peak_mb_{name}"] = round(peak_bytes(make_block, shape, dtype, device) / 1e6, 1)
            rows.append(row | {"paper_mb_float32": megabytes})
    shown = table(rows)
    crop = "x".join(map(str, config.complexity.crop))
    append_csv(Path(f"{config.output}_complexity.csv"), [row | {"crop": crop} | provenance(device) for row in rows])
    return f"added by attention at 1x3x{crop}, C={c}, D={d}\n{shown}"
