"""Batched matrix products on a CPU, written to strided arrays by whichever library is fastest there.

torch multiplies bfloat16 with oneDNN, and float32 with MKL, which reaches only half of oneDNN's speed on AMD processors
with AVX-512.
"""

from functools import cache

import torch
from torch import Tensor

NUMBERS_PER_THREAD = 2**19  # of a product per step, few enough to be still in cache when they are added to the output
LINE_WORK = 2**21  # with fewer multiplications per line, a call for each costs more time than it saves


def multiply(left: Tensor, right: Tensor, out: Tensor, *, factor: float = 1, add: Tensor | None = None) -> None:
    """Write ``factor * left @ right``, plus ``add`` if given, to ``out``, (lines, m, n).

    The left factor is converted to the dtype of the right one. torch's batched products are fast and parallel only if
    ``out`` is contiguous; otherwise, and if ``out`` has a wider dtype, they go through a small buffer. With one thread,
    large lines are multiplied one by one.
    """
    if _is_faster_by_line(left, right, out):
        multiply_line = _multiply_line_with_onednn if prefers_onednn() else _multiply_line
        for lines in zip(left, right, out, [None] * len(out) if add is None else add, strict=True):
            multiply_line(*lines, factor)
        return
    in_place = out.is_contiguous() and out.dtype == right.dtype
    parts = [slice(None)] if in_place and left.dtype == right.dtype else steps(len(out), out[0].numel())
    buffer = None
    for part in parts:
        factors = left[part].to(right.dtype), right[part]
        target, added = out[part], None if add is None else add[part]
        if in_place:
            if factor == 0 and added is None:
                target.zero_()  # oneDNN does not write to it if alpha and beta are 0
            else:
                accumulated = target if added is None else added
                torch.baddbmm(accumulated, *factors, beta=int(added is not None), alpha=factor, out=target)
            continue
        if buffer is None:
            buffer = right.new_empty(target.shape)
        _finish(torch.bmm(*factors, out=buffer[: len(target)]), target, factor, added)


def multiply_precisely(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write ``left @ right`` of bfloat16 arrays to the float32 ``out``, (lines, m, n), with an error of about 2^-17.

    torch sums in float32, but rounds each product to bfloat16. A second product adds to the negative of the first one,
    and so yields what the rounding has dropped.
    """
    for part in steps(len(out), out[0].numel()):
        # oneDNN is twice as fast on dense copies of columns, and needs them for both products.
        dense_left, dense_right = left[part].contiguous(), right[part].mT.contiguous().mT
        rounded = torch.bmm(dense_left, dense_right)
        out[part] = rounded
        out[part] += torch.baddbmm(rounded, dense_left, dense_right, beta=-1)


def _finish(product: Tensor, out: Tensor, factor: float, add: Tensor | None) -> None:
    """Write ``factor * product``, plus ``add`` if given, to ``out``."""
    if add is not None:
        torch.add(add, product, alpha=factor, out=out)
    elif factor == 1:
        out.copy_(product)
    else:
        torch.mul(product, factor, out=out)


def _is_faster_by_line(left: Tensor, right: Tensor, out: Tensor) -> bool:
    """Return whether the lines of a batch are multiplied faster one by one.

    MKL then needs no buffer for a strided ``out``, and oneDNN multiplies single float32 matrices only. With several
    threads, they would synchronise after every line.
    """
    is_large = left[0].numel() * right.shape[-1] >= LINE_WORK
    is_single = left.dtype == right.dtype == out.dtype == torch.float32
    return is_large and is_single and torch.get_num_threads() == 1


def _multiply_line(left: Tensor, right: Tensor, out: Tensor, add: Tensor | None, factor: float) -> None:
    """Write ``factor * left @ right``, plus ``add`` if given, to ``out``, (m, n)."""
    torch.addmm(out if add is None else add, left, right, beta=int(add is not None), alpha=factor, out=out)


def _multiply_line_with_onednn(left: Tensor, right: Tensor, out: Tensor, add: Tensor | None, factor: float) -> None:
    """Compute the same with oneDNN, whose float32 product torch offers only as a linear layer."""
    # Its weights are right^T. It is 1000 times slower if they are strided.
    weight = right.contiguous().mT if right.stride(-1) == 1 else right.mT.contiguous()
    _finish(torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], ""), out, factor, add)


def steps(lines: int, numbers: int) -> list[slice]:
    """Divide lines into parts whose results, ``numbers`` per line, are still in cache when they are used."""
    step = torch.get_num_threads() * max(1, NUMBERS_PER_THREAD // numbers)
    return [slice(first, min(first + step, lines)) for first in range(0, lines, step)]


def multiplies_natively(dtype: torch.dtype) -> bool:
    """Return whether torch multiplies large arrays of a half-precision dtype faster than converted ones."""
    has_instructions = torch.cpu._is_avx512_bf16_supported()
    return dtype == torch.bfloat16 and has_instructions and bool(torch.backends.mkldnn.enabled)


def prefers_onednn() -> bool:
    """Return whether oneDNN multiplies float32 faster than MKL, which does not use AVX-512 on AMD's processors."""
    return _is_amd_with_avx512() and bool(torch.backends.mkldnn.enabled)


@cache
def _is_amd_with_avx512() -> bool:
    processor = torch.cpu.get_capabilities()
    return processor.get("avx512_f", False) and processor.get("cpu_name", "").startswith("AMD")
