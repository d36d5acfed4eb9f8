"""Calls of the operators for a CPU in every memory layout, and their comparison with the reference."""

import pytest
import torch

from ccnet.kernels import criss_cross_attention, criss_cross_residual

OPERATORS = pytest.mark.parametrize(
    "operator", [criss_cross_attention, criss_cross_residual], ids=["attention", "residual"]
)


def contiguous(batch, spatial, widths, dtype):
    return [torch.randn(batch, width, *spatial, dtype=dtype) for width in widths]


def channels_last(batch, spatial, widths, dtype):
    return [torch.randn(batch, *spatial, width, dtype=dtype).movedim(-1, 1) for width in widths]


def slices(batch, spatial, widths, dtype):
    return list(torch.randn(batch, *spatial, sum(widths), dtype=dtype).movedim(-1, 1).split(widths, 1))


def irregular(batch, spatial, widths, dtype):
    """Return every second image, mirrored in memory order."""
    arrays = [torch.randn(2 * batch, width, *reversed(spatial), dtype=dtype) for width in widths]
    return [array[::2].permute(0, 1, *range(array.ndim - 1, 1, -1)) for array in arrays]


def constant(batch, spatial, widths, dtype):
    return [torch.randn(width, *[1] * len(spatial), dtype=dtype).expand(batch, width, *spatial) for width in widths]


def make(operator, *, batch=2, spatial=(5, 4), dtype=torch.float64, layout=channels_last):
    """Return the operator's leaves."""
    arrays = layout(batch, spatial, [3, 3, 6, 6], dtype)
    arrays.append(torch.tensor([0.7], dtype=dtype))
    arrays = arrays[:3] if operator is criss_cross_attention else arrays
    return [array.detach().requires_grad_() for array in arrays]


def results(operator, arrays, upstream, **options):
    out = operator(*arrays, **options)
    return [out, *torch.autograd.grad(out, arrays, upstream.to(out.dtype))]


def check(operator, arrays, tolerance=1e-10, **options):
    """Compare output and gradients with the reference in float64, relative to the largest element."""
    wide = [array.detach().double().requires_grad_() for array in arrays]
    upstream = torch.randn(arrays[2].shape).bfloat16().double()  # exact in every dtype
    got = results(operator, arrays, upstream, **options)
    wanted = results(operator, wide, upstream, backend="reference", **options)
    with torch.no_grad():
        without_gradients = operator(*arrays, **options)
    for ours, want in zip([*got, without_gradients], [*wanted, wanted[0]], strict=True):
        assert (ours - want).abs().max() <= tolerance * max(1, want.abs().max())
    return got
