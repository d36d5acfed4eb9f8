"""The reference and the CPU operators equal a dense oracle that follows the definition position by position."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import run_python

from ccnet.kernels import criss_cross_attention, criss_cross_residual, criss_cross_weights
from ccnet.models import RecurrentCrissCrossAttention

pytestmark = pytest.mark.usefixtures("operators_on_small_calls")

CASES = [
    (spatial, axes)
    for spatial in [(7,), (1,), (5, 4), (1, 6), (6, 1), (1, 1), (3, 4, 2), (1, 4, 3), (2, 1, 1)]
    for count in range(1, len(spatial) + 1)
    for axes in itertools.combinations(range(len(spatial)), count)
]


def dense_attention(query, key, axes, scale=1.0):
    """Return the (N, P, P) attention over all P positions, in C order, masked to the criss-cross pattern."""
    spatial = query.shape[2:]
    positions = list(itertools.product(*map(range, spatial)))

    def attends(here, there):
        different = [axis for axis in range(len(spatial)) if here[axis] != there[axis]]
        return not different or (len(different) == 1 and different[0] in axes)

    allowed = torch.tensor([[attends(here, there) for there in positions] for here in positions])
    energy = scale * torch.einsum("ndp,ndq->npq", query.flatten(2), key.flatten(2))
    return energy.masked_fill(~allowed, float("-inf")).softmax(dim=-1), allowed


def dense(query, key, value, axes, scale=1.0):
    attention, _ = dense_attention(query, key, axes, scale)
    return torch.einsum("npq,ncq->ncp", attention, value.flatten(2)).view_as(value)


def make(spatial, *, batch=2, d=3, c=5, dtype=torch.float64):
    shapes = [(batch, d, *spatial), (batch, d, *spatial), (batch, c, *spatial)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize(("spatial", "axes"), CASES, ids=str)
def test_equals_dense_oracle(spatial, axes, backend):
    inputs = make(spatial)
    upstream = torch.randn_like(inputs[2])
    got = criss_cross_attention(*inputs, axes=axes, backend=backend)
    want = dense(*inputs, axes)
    assert (got - want).abs().max() < 1e-10
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (got, want)]
    for name, ours, oracle in zip("qkv", *gradients, strict=True):
        assert (ours - oracle).abs().max() < 1e-10, name


@pytest.mark.parametrize(("spatial", "number"), [((5, 4), 5 + 4 - 1), ((3, 5, 4), 3 + 5 + 4 - 2)])
def test_every_key_counts_once(spatial, number):
    """With equal scores, each of the H + W - 1 (T + H + W - 2) keys, the position included, gets the same weight."""
    zeros = torch.zeros(1, 2, *spatial, dtype=torch.float64)
    position = tuple(size // 2 for size in spatial)
    weights = criss_cross_weights(zeros, zeros, position)[0]
    assert (weights > 0).sum() == number
    assert torch.allclose(weights[weights > 0], torch.tensor(1 / number, dtype=torch.float64))


def test_default_attends_along_all_axes_and_scale_multiplies_scores():
    inputs = make((4, 3))
    assert (criss_cross_attention(*inputs, scale=0.3) - dense(*inputs, (0, 1), 0.3)).abs().max() < 1e-10


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_learned_scale_has_a_gradient(backend):
    scale = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    inputs = make((4, 3))
    out = criss_cross_attention(*inputs, scale=scale, backend=backend)
    want = dense(*inputs, (0, 1), scale)
    assert (out - want).abs().max() < 1e-10
    (ours,), (oracle,) = (torch.autograd.grad(result.sum(), scale) for result in (out, want))
    assert (ours - oracle).abs() < 1e-10
    weights = criss_cross_weights(*inputs[:2], (1, 2), scale=scale)
    assert torch.allclose(weights, criss_cross_weights(*inputs[:2], (1, 2), scale=0.3))


@pytest.mark.parametrize("spatial", [(6,), (4, 5), (2, 3, 4)], ids=str)
def test_layouts_agree(spatial):
    inputs = make(spatial)
    want = criss_cross_attention(*inputs)
    last = [tensor.movedim(1, -1) for tensor in inputs]
    assert torch.equal(criss_cross_attention(*last, channel_axis=-1).movedim(-1, 1), want)
    assert torch.equal(criss_cross_attention(*[t.contiguous() for t in last], channel_axis=-1).movedim(-1, 1), want)


def test_slices_of_one_buffer():
    """Query, key and value are non-contiguous views of one projection, as a fused 1x1 convolution returns."""
    buffer = torch.randn(2, 3 + 3 + 5, 4, 6, dtype=torch.float64).to(memory_format=torch.channels_last)
    query, key, value = buffer.split([3, 3, 5], dim=1)
    assert not query.is_contiguous()
    got = criss_cross_attention(query, key, value)
    assert (got - dense(query, key, value, (0, 1))).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_low_precision(dtype, tolerance):
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in make((6, 5))]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    got, want = criss_cross_attention(*inputs), dense(*wide, (0, 1))
    assert got.dtype == dtype
    assert (got.double() - want).abs().max() < tolerance
    for ours, oracle in zip(torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), wide), strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - oracle).abs().max() < 4 * tolerance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_large_scores_do_not_overflow(dtype):
    """64 channels of value 40 give scores of 102400, beyond float16; the softmax stays finite."""
    query = torch.full((1, 64, 3, 4), 40.0, dtype=dtype)
    key = query.clone()
    key[..., 1] = -40
    value = torch.randn(1, 2, 3, 4, dtype=dtype)
    out = criss_cross_attention(query, key, value, axes=(1,))
    assert out.isfinite().all()
    want = value[..., [0, 2, 3]].mean(dim=-1, keepdim=True).expand_as(value)
    assert torch.allclose(out, want, atol=1e-2)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_autocast_does_not_change_the_result(backend):
    inputs = make((5, 6), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        under = criss_cross_attention(*inputs, backend=backend)
        weights = criss_cross_weights(*inputs[:2], (1, 2))
    assert torch.equal(under, criss_cross_attention(*inputs, backend=backend))
    assert torch.equal(weights, criss_cross_weights(*inputs[:2], (1, 2)))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("axes_of_gamma", [0, 5])
def test_gamma_of_any_shape(axes_of_gamma, backend):
    """Gamma changes neither the result's shape and dtype nor whether it can be differentiated twice."""
    query, key, value = make((3, 2))
    gamma = torch.full((1,) * axes_of_gamma, 0.7, dtype=torch.float64, requires_grad=True)
    residual = value.detach()
    out = criss_cross_residual(query, key, value, residual, gamma, backend=backend)
    torch.testing.assert_close(out, 0.7 * dense(query, key, value, (0, 1)) + residual)
    assert criss_cross_residual(query, key, value, residual.float(), gamma, backend=backend).dtype == torch.float32
    first, dgamma = torch.autograd.grad(out.square().sum(), (query, gamma), create_graph=True)
    assert dgamma.shape == gamma.shape
    assert torch.autograd.grad(first.square().sum(), gamma)[0].shape == gamma.shape


def test_empty_batch():
    inputs = make((4, 5), batch=0)
    out = criss_cross_attention(*inputs)
    assert out.shape == (0, 5, 4, 5)
    out.sum().backward()
    assert inputs[0].grad.shape == inputs[0].shape


@pytest.mark.parametrize("recurrence", [1, 2, 3])
@pytest.mark.parametrize(
    ("spatial", "axes"), [((4, 5), None), ((4, 5), (1,)), ((2, 3, 4), None), ((2, 3, 4), (0, 2))], ids=str
)
def test_weights_are_a_row_of_a_power_of_the_attention_matrix(spatial, axes, recurrence):
    query, key, _ = make(spatial)
    position = tuple(size - 1 for size in spatial)
    attention, _ = dense_attention(query, key, axes or range(len(spatial)))
    row = torch.linalg.matrix_power(attention, recurrence)[:, -1]
    options = {"recurrence": recurrence, "axes": axes}
    got = criss_cross_weights(query, key, position, **options)
    assert (got.flatten(1) - row).abs().max() < 1e-12
    last = query.movedim(1, -1), key.movedim(1, -1)
    assert torch.equal(criss_cross_weights(*last, position, channel_axis=-1, **options), got)


def test_two_loops_reach_every_position_and_one_does_not():
    query, key, _ = make((5, 6))
    assert (criss_cross_weights(query, key, (1, 2))[0] > 0).sum() == 5 + 6 - 1
    assert (criss_cross_weights(query, key, (1, 2), recurrence=2)[0] > 0).all()


def test_weights_times_value_is_the_output():
    query, key, value = make((4, 5))
    weights = criss_cross_weights(query, key, (2, 3))
    out = criss_cross_attention(query, key, value)
    assert (torch.einsum("nhw,nchw->nc", weights, value) - out[..., 2, 3]).abs().max() < 1e-12


def bad(**changes):
    arguments = {name: torch.zeros(2, channels, 4, 5) for name, channels in (("query", 3), ("key", 3), ("value", 6))}
    return arguments | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (bad(key=torch.zeros(2, 3, 4, 6)), r"query and key must have the same shape.*\(2, 3, 4, 6\)"),
        (bad(key=torch.zeros(2, 4, 4, 5)), "query and key must have the same shape"),
        (bad(value=torch.zeros(2, 6, 5, 4)), r"agree in N and S.*value \(2, 6, 5, 4\)$"),
        (bad(value=torch.zeros(1, 6, 4, 5)), "agree in N and S"),
        (bad(value=torch.zeros(2, 6, 4)), "agree in N and S"),
        (bad(value=torch.zeros(2, 6, 4, 5).double()), "value float64: cast them"),
        ({name: tensor.int() for name, tensor in bad().items()}, "bfloat16, float32, float64, got int32: cast"),
        ({name: tensor.to("meta") if name == "value" else tensor for name, tensor in bad().items()}, "value on meta"),
        ({name: tensor[..., 0, 0] for name, tensor in bad().items()}, "one to three spatial axes"),
        ({name: tensor[..., :0] for name, tensor in bad().items()}, "at least 1"),
        (bad(value=torch.zeros(2, 0, 4, 5)), r"at least 1, .* value \(2, 0, 4, 5\)"),
        (bad(axes=0), r"axes must be a sequence of integers, such as \(0, 1\), got 0"),
        (bad(axes=(0.0,)), r"axes must be a sequence of integers, .* got \(0\.0,\)"),
        (bad(axes=(2,)), r"axes \(2,\) are invalid for 2 spatial axes"),
        (bad(axes=()), "are invalid for"),
        (bad(axes=(1, 1)), "choose distinct ones"),
        (bad(axes=(-1,)), "are invalid for"),
        (bad(channel_axis=2), "channel_axis is 2"),
        (bad(backend="cuda"), "'cuda' is unknown: choose one of auto, triton, reference"),
    ],
)
def test_bad_input_is_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        criss_cross_attention(**arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"residual": torch.zeros(2, 6, 5, 4)}, r"residual must have the shape of value, got \(2, 6, 5, 4\)"),
        ({"gamma": torch.zeros(2)}, r"gamma must have exactly one element, got shape \(2,\)"),
        ({"gamma": torch.zeros(0)}, r"gamma must have exactly one element, got shape \(0,\)"),
        ({"residual": torch.zeros(2, 6, 4, 5).int()}, "expected residual in .*, got int32: cast it first"),
        ({"gamma": torch.zeros(1).int()}, "expected gamma in .*, got int32: cast it first"),
        ({"residual": torch.zeros(2, 6, 4, 5, device="meta")}, "same device, got cpu, meta and cpu"),
        ({"gamma": torch.zeros(1, device="meta")}, "same device, got cpu, cpu and meta"),
    ],
)
def test_a_bad_residual_or_gamma_is_rejected(changed, message):
    with pytest.raises(ValueError, match=message):
        criss_cross_residual(**bad(residual=torch.zeros(2, 6, 4, 5), gamma=torch.zeros(1)) | changed)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    "scale", [torch.tensor(0.5), torch.full((1, 1), 0.5), np.float32(0.5), np.array(0.5), Fraction(1, 2)]
)
def test_the_scale_may_be_any_number_or_array_with_one_element(scale, backend):
    inputs = make((4, 3))
    options = {"backend": backend}
    want = criss_cross_attention(*inputs, scale=0.5, **options)
    assert torch.equal(criss_cross_attention(*inputs, scale=scale, **options), want)


@pytest.mark.parametrize("scale", [torch.ones(2), torch.ones(1, 2), np.ones(0), "1"])
def test_any_other_scale_is_rejected(scale):
    with pytest.raises(ValueError, match="scale must be a number or an array with one element"):
        criss_cross_attention(**bad(scale=scale))


def test_numpy_arrays_are_rejected_beside_tensors():
    query = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"numpy\.ndarray: pass only torch tensors or only jax arrays"):
        criss_cross_attention(query, query.numpy(), query.numpy())


@pytest.mark.parametrize("position", [(4, 0), (-1, 0), (1,), (1, 1, 1)])
def test_positions_outside_the_image_are_rejected(position):
    with pytest.raises(ValueError, match="outside the image"):
        criss_cross_weights(torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 5), position)


def test_invalid_positions_and_numbers_of_loops_are_rejected():
    query = torch.zeros(1, 2, 4, 5)
    with pytest.raises(ValueError, match=r"position must be a sequence of integers, .* got \(0\.5, 1\)"):
        criss_cross_weights(query, query, (0.5, 1))
    for recurrence in (0, 1.5):
        with pytest.raises(ValueError, match=f"recurrence is {recurrence}: set it to the number of loops, at least 1"):
            criss_cross_weights(query, query, (0, 1), recurrence=recurrence)
    for recurrence in (-1, 65, 1.5):
        with pytest.raises(ValueError, match=f"recurrence is {recurrence}: set the number of loops, from 0 to 64"):
            RecurrentCrissCrossAttention(8, recurrence=recurrence)
    RecurrentCrissCrossAttention(8, recurrence=64)


WITHOUT_JAX = """
import sys
sys.modules["jax"] = None
import torch
from ccnet import kernels, losses
x = torch.ones(1, 4, 5, 6)
print(tuple(kernels.criss_cross_attention(x, x, x).shape), losses.cross_entropy(x, torch.ones(1, 5, 6).long()))
"""


@pytest.mark.slow
def test_the_operator_and_the_losses_need_no_jax():
    """That JAX needs no torch is tested with whole networks, in tests/models/test_jax_without_torch.py."""
    assert run_python("-c", WITHOUT_JAX).startswith("(1, 4, 5, 6) ")


def test_numpys_numbers_are_options():
    query, key = torch.randn(2, 1, 2, 4, 5)
    options = {"scale": np.array([0.5]), "axes": np.array([1])}
    same = criss_cross_attention(query, key, key, scale=0.5, axes=(1,))
    assert torch.equal(criss_cross_attention(query, key, key, **options), same)
    assert criss_cross_weights(query, key, np.array([1, 2]), **options).shape == (1, 4, 5)
