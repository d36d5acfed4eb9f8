"""The Triton kernels in interpreter mode on the CPU agree with the reference in float64.

Only float32 and float16 are tested: the interpreter silently computes bfloat16 wrongly.
"""

from types import SimpleNamespace

import pytest
import torch
from triton_calls import DTYPES, INTERPRETED, TOLERANCE, check, last, make, pinned

from ccnet.kernels import criss_cross_attention, criss_cross_residual, split_channels
from ccnet.kernels.launches import plan, problem
from ccnet.kernels.torch_ops import passes
from ccnet.kernels.torch_ops.devices import device_of

pytestmark = INTERPRETED

# (spatial, D, C). They cover one and several tiles along either axis, one and several slabs of channels, odd widths
# and axes of length 1. The interpreter takes 30 ms per line, so long axes are paired with short ones.
SHORT = [
    ((1,), 3, 5),
    ((64,), 7, 24),
    ((257,), 16, 36),
    ((1, 1), 8, 16),
    ((2, 33), 5, 70),
    ((15, 17), 16, 33),
]
LONG = [
    ((2, 3, 16), 8, 17, torch.float16),
    ((1, 17, 2), 4, 20, torch.float32),
    ((128,), 16, 20, torch.float16),
    ((2, 65), 16, 20, torch.float16),
    ((97,), 16, 33, torch.float16),
]
CASES = [(*case, dtype) for case in SHORT for dtype in TOLERANCE] + LONG


@pytest.mark.parametrize(("spatial", "d", "c", "dtype"), CASES, ids=str)
def test_attention_matches_float64(spatial, d, c, dtype):
    query, key, value, residual, _ = make(spatial, d, c, dtype)
    check(last(criss_cross_attention), (query, key, value), residual.detach(), TOLERANCE[dtype])


@pytest.mark.parametrize("seed", range(4, 8))
def test_float16_gradients_of_large_scores(seed):
    """Some of these draws exceed the tolerance if delta is computed from a rounded output."""
    query, key, value, _, _ = make((5, 9), 8, 20, torch.float16, seed=seed)
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(99 + seed)).half()
    check(last(criss_cross_attention), (query, key, value), upstream, TOLERANCE[torch.float16])


@DTYPES
@pytest.mark.parametrize("spatial", [(16,), (5, 9), (2, 3, 2)], ids=str)
def test_residual_matches_float64(spatial, dtype):
    inputs = make(spatial, 8, 20, dtype, batch=2)
    # Part of the upstream gradient is the output itself; otherwise the terms of gamma's gradient would cancel.
    upstream = 0.25 * criss_cross_attention(*inputs[:3], channel_axis=-1, backend="reference").detach()
    # Drawn in float32, for which every torch version draws the same numbers.
    check(last(criss_cross_residual), inputs, upstream + torch.randn(upstream.shape).to(dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2), (1, 2)])
def test_subsets_of_the_axes(axes):
    query, key, value, residual, _ = make((3, 5, 2), 8, 12, torch.float32)
    check(last(criss_cross_attention, axes=axes), (query, key, value), residual.detach(), 2e-6)


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize(
    ("tile", "dtype"),
    [
        ((16, 16, 16, 4, 2), torch.float16),
        ((16, 64, 32, 4, 2), torch.float32),
        ((64, 32, 16, 4, 2), torch.float32),
        ((64, 64, 64, 4, 2), torch.float16),
        ((16, 64, 8, 4, 2, True), torch.float32),
    ],
    ids=str,
)
def test_every_tiling_agrees(tile, dtype, kernel):
    """Tile sizes depend on line length, device and table, and must not change the result."""
    with pinned(plan.Tile(*tile), str(dtype)[6:], kernel):
        query, key, value, residual, _ = make((2, 20), 8, 40, dtype)
        check(last(criss_cross_attention), (query, key, value), residual.detach(), TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("spatial", [(34, 2), (2, 34)], ids=str)
def test_gradients_add_up_over_passes_and_tiles(spatial, dtype):
    """Three tiles in the first or in the last pass; in float16, that of the value needs partial sums in float32."""
    query, key, value, residual, _ = make(spatial, 8, 20, dtype)
    tile = plan.Tile(16, 16, 16, 4, 2)
    with pinned(tile, str(dtype)[6:], "backward"):
        launches = plan.backward_launches(plan.Problem(1, spatial, (0, 1), 8, 20, str(dtype)[6:]), device_of(None))
        assert plan.backward_partials(launches) == (True, True, True)
        check(last(criss_cross_attention), (query, key, value), residual.detach(), TOLERANCE[dtype])


def test_wide_offsets(monkeypatch):
    """The 64-bit offsets of images with 2^31 elements, forced on a small image."""
    for module in (plan, problem):  # the latter so that no descriptors are used, as for such an image
        monkeypatch.setattr(module, "is_wide", lambda _: True)
    query, key, value, residual, _ = make((3, 6), 7, 11, torch.float32)
    check(last(criss_cross_attention), (query, key, value), residual.detach(), 2e-6)


def test_channel_slices_of_one_projection_are_read_in_place(monkeypatch):
    buffer = torch.randn(2, 8 + 8 + 20, 5, 6).to(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda *_: pytest.fail("copied"))
    query, key, value = buffer.split([8, 8, 20], dim=1)
    got = criss_cross_attention(query, key, value, backend="triton")
    monkeypatch.undo()
    want = criss_cross_attention(*(array.double() for array in (query, key, value)))
    assert (got - want).abs().max() < 1e-5
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 3, 4), torch.float16),
        ((2, 3, 4), torch.float32),
        ((1, 2, 2, 3), torch.float16),
        ((1, 70), torch.float32),  # several tiles
    ],
    ids=str,
)
def test_gradients_of_channel_slices_share_one_tensor(shape, dtype):
    """They are the gradients of separate tensors, and need no copy."""
    projected = torch.randn(*shape, 8 + 8 + 20).to(dtype).movedim(-1, 1).requires_grad_()
    upstream = torch.randn(*shape, 20).to(dtype).movedim(-1, 1)
    seen = []
    query, key, value = split_channels(projected, [8, 8, 20])
    value.register_hook(seen.append)
    (got,) = torch.autograd.grad(criss_cross_attention(query, key, value, backend="triton"), projected, upstream)
    assert got.untyped_storage().data_ptr() == seen[0].untyped_storage().data_ptr()
    separate = [array.detach().clone().requires_grad_() for array in (query, key, value)]
    want = torch.autograd.grad(criss_cross_attention(*separate, backend="triton"), separate, upstream)
    assert torch.equal(got, torch.cat(want, dim=1))


@pytest.mark.parametrize("layout", ["nchw", "cropped", "transposed", "cropped channels-last", "every second pixel"])
def test_other_strides(layout):
    def view(channels):
        if layout == "cropped channels-last":  # the rows are not as far apart as their lengths tell
            return torch.randn(2, 5, 6, channels)[:, 1:4, 1:].movedim(-1, 1)
        if layout == "every second pixel":  # read in place
            return torch.randn(2, 3, 8, channels)[:, :, ::2].movedim(-1, 1)
        array = torch.randn(2, channels, 9, 8)
        if layout == "nchw":
            return array
        return array[..., 1:7, 2:] if layout == "cropped" else array.mT

    query, key, value = (view(channels).requires_grad_() for channels in (4, 4, 10))
    upstream = torch.randn_like(value)
    check(criss_cross_attention, (query, key, value), upstream, 2e-6)


@pytest.mark.parametrize("upstream", [torch.tensor(1.5), torch.randn(20)], ids=["one number", "one pixel"])
def test_expanded_gradient(upstream):
    """The gradient of a sum or a mean is an expanded tensor, of stride 0."""
    query, key, value, _, _ = make((5, 6), 8, 20, torch.float32)
    check(last(criss_cross_attention), (query, key, value), upstream.expand_as(value), 2e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_saved_tensors_may_return_in_another_layout(residual):
    """Hooks such as save_on_cpu(pin_memory=True) keep the values of saved tensors, but not their strides."""
    query, key, value, added, gamma = (array.detach() for array in make((3, 4), 8, 20, torch.float32, batch=2))
    images = [array.movedim(-1, 1).requires_grad_() for array in (query, key, value)]
    arrays = [*images, added.movedim(-1, 1), gamma] if residual else images
    function = criss_cross_residual if residual else criss_cross_attention

    def dense(tensor):
        return tensor.clone(memory_format=torch.contiguous_format)

    expected = torch.autograd.grad(function(*arrays, backend="triton").square().sum(), images)
    with torch.autograd.graph.saved_tensors_hooks(dense, lambda tensor: tensor):
        out = function(*arrays, backend="triton")
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), images), expected)


def test_scale_and_half_residual_in_float32():
    query, key, value, _, gamma = make((4, 9), 8, 20, torch.float16)
    residual = torch.randn(1, 4, 9, 20, requires_grad=True)
    inputs = (query, key, value, residual, gamma)
    check(last(criss_cross_residual, scale=0.5), inputs, torch.randn(1, 4, 9, 20), 2e-3)
    assert criss_cross_residual(*inputs, channel_axis=-1, backend="triton").dtype == torch.float32


def test_gamma_of_zero_has_a_gradient():
    """At gamma = 0, its initial value, the output is the residual, and only gamma and the residual get gradients."""
    *arrays, _ = make((4, 5), 8, 12, torch.float32)
    gamma = torch.zeros(1, requires_grad=True)
    out = criss_cross_residual(*arrays, gamma, channel_axis=-1, backend="triton")
    assert torch.equal(out, arrays[3])
    gradients = torch.autograd.grad(out, [*arrays, gamma], torch.randn_like(out))
    assert gradients[-1].abs() > 0 and not gradients[0].any()


def test_inference_equals_training():
    inputs = make((5, 18), 8, 20, torch.float32)
    trained = criss_cross_residual(*inputs, channel_axis=-1, backend="triton")
    with torch.no_grad():
        assert torch.equal(criss_cross_residual(*inputs, channel_axis=-1, backend="triton"), trained)


def test_empty_batch():
    inputs = make((4, 5), 8, 12, torch.float32, batch=0)
    out = criss_cross_residual(*inputs, channel_axis=-1, backend="triton")
    assert out.shape == (0, 4, 5, 12)
    assert all(not gradient.any() for gradient in torch.autograd.grad(out.sum(), inputs))


def test_scores_beyond_float16():
    query = torch.full((1, 3, 4, 64), 40.0, dtype=torch.float16)
    key = query.clone()
    key[:, :, 1] = -40  # scores of 102400 and -102400
    value = torch.randn(1, 3, 4, 8, dtype=torch.float16)
    out = criss_cross_attention(query, key, value, axes=(1,), channel_axis=-1, backend="triton")
    want = value[:, :, [0, 2, 3]].float().mean(dim=2, keepdim=True).expand_as(value)
    assert torch.allclose(out.float(), want, atol=2e-3)


def test_autocast_does_not_change_the_result():
    inputs = make((5, 6), 8, 12, torch.float32)[:3]
    with torch.autocast("cpu", torch.bfloat16):
        out = criss_cross_attention(*inputs, channel_axis=-1, backend="triton")
    assert out.dtype == torch.float32
    assert torch.equal(out, criss_cross_attention(*inputs, channel_axis=-1, backend="triton"))


def test_offsets_in_an_image_of_2_to_the_31_elements_are_64_bit():
    problem = plan.Problem(1, (1024, 1024), (0, 1), 64, 512, "float16")
    assert not plan.forward_launches(problem, device_of(None))[0].constants["WIDE"]
    far = problem._replace(widest_stride=2048)
    assert plan.forward_launches(far, device_of(None))[0].constants["WIDE"]


def test_the_interpreter_runs_calls_on_a_hopper_gpu(monkeypatch):
    """On such a GPU, passes overlap by instructions that the interpreter does not have."""
    hopper = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, multi_processor_count=132)
    hopper.shared_memory_per_block_optin = 232448
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: hopper)
    device = device_of.__wrapped__(0)  # not cached
    monkeypatch.setattr(passes, "device_of", lambda _: device)
    query, key, value, residual, _ = make((3, 4), 8, 12, torch.float32)
    check(last(criss_cross_attention), (query, key, value), residual.detach(), 2e-6)
