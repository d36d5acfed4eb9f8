"""Calls of the operator with JAX arrays and with torch tensors, whose results a test compares."""

from functools import partial

import numpy as np
import pytest
import torch

from ccnet.kernels import criss_cross_attention, criss_cross_residual

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")

OPERATORS = [criss_cross_attention, criss_cross_residual]


def make(spatial, *, batch=2, d=3, c=5, dtype=np.float64, seed=0):
    """Return query, key, value and residual, (N, *S, channels), and gamma."""
    generator = np.random.default_rng(seed)
    shapes = [(batch, *spatial, channels) for channels in (d, d, c, c)]
    return [generator.standard_normal(shape).astype(dtype) for shape in (*shapes, (1,))]


def torch_result(function, arrays, upstream, **options):
    """Return the output and the gradients of the torch reference."""
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    out = function(*tensors, backend="reference", **options)
    return [x.detach().numpy() for x in (out, *torch.autograd.grad(out, tensors, torch.from_numpy(upstream)))]


def jax_result(function, arrays, upstream, jit=True, **options):
    def both(arrays, upstream):
        out, backward = jax.vjp(partial(function, **options), *arrays)
        return out, *backward(upstream)

    # jnp.asarray would compile a program for every shape.
    return jax.device_get((jax.jit(both) if jit else both)(jax.device_put(arrays), jax.device_put(upstream)))


def used(function, arrays):
    return arrays[:3] if function is criss_cross_attention else arrays


def agree(ours, theirs, tolerance):
    for index, (a, b) in enumerate(zip(*jax.device_get((ours, theirs)), strict=True)):
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) < tolerance * max(1, np.abs(b).max(initial=0)), (
            f"result {index} (output, then gradients)"
        )
