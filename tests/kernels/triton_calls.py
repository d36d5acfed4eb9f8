"""Calls of the Triton kernels in interpreter mode, their tiles, and the comparison of their results with float64."""

from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from ccnet.kernels.launches import plan
from ccnet.kernels.torch_ops.launch import is_interpreted

INTERPRETED = [
    pytest.mark.slow,
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(not is_interpreted(), reason="TRITON_INTERPRET=1 was not set before triton was imported"),
]

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}  # relative to the largest element
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype)[6:])


def make(spatial, d, c, dtype, batch=1, seed=0):
    """Return channels-last query, key, value, residual, and gamma; the scores have a standard deviation of 4."""
    generator = torch.Generator().manual_seed(seed)

    def normal(channels, deviation=1.0):
        array = torch.randn(batch, *spatial, channels, generator=generator) * deviation
        return array.to(dtype).requires_grad_()

    wide = 2 / d**0.25
    query, key, value, residual = normal(d, wide), normal(d, wide), normal(c), normal(c)
    return query, key, value, residual, torch.tensor([0.7], requires_grad=True)


def check(function, inputs, upstream, tolerance):
    """Compare result and every gradient with the reference in float64."""
    oracle_inputs = [array.detach().double().requires_grad_() for array in inputs]
    results = []
    for arrays, backend in ((inputs, "triton"), (oracle_inputs, "reference")):
        out = function(*arrays, backend=backend)
        gradients = torch.autograd.grad(out, arrays, upstream.to(out.dtype))
        results.append([out, *gradients])
    for index, (ours, oracle) in enumerate(zip(*results, strict=True)):
        assert ours.isfinite().all(), f"result {index}"
        largest = oracle.abs().max()
        # The gradient of a softmax over one key is zero up to rounding.
        error = (ours.double() - oracle).abs().max() / (largest if largest > 1e-6 else 1)
        assert error < tolerance, f"result {index} (output, then gradients): {error:.1e}"


@contextmanager
def pinned(tile, dtype="float32", kernel="forward"):
    """Use a tile for every pass of a kernel in a dtype, in the interpreter."""
    row = {"kernel": kernel, "dtype": dtype, "min_length": 1, "max_length": 999, "max_query_channels": 128}
    plan.use_table("interpreter", [row | {"tile": tile._asdict()}])
    try:
        yield
    finally:
        plan.use_table("interpreter", [])


def last(function, **options):
    return lambda *arrays, backend: function(*arrays, channel_axis=-1, backend=backend, **options)
