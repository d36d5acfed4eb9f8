"""The operators for a CPU agree with the reference in every layout and dtype, with the products of either library."""

from unittest.mock import Mock

import pytest
import torch
from cpu_calls import OPERATORS, channels_last, check, constant, contiguous, irregular, make, results, slices
from torch.utils._python_dispatch import TorchDispatchMode

from ccnet.kernels import criss_cross_attention, criss_cross_residual
from ccnet.kernels.call import Call, Options
from ccnet.kernels.torch_ops.cpu import blocks, products

pytestmark = pytest.mark.usefixtures("poisoned_memory", "operators_on_small_calls")


@pytest.fixture(params=["whole", "split", "by axis"])
def pieces(request, monkeypatch):
    """Compute small inputs first in one piece, then like large ones: one image, one line, a few channels at a time.

    Without gradients, the largest images are computed axis by axis.
    """
    if request.param != "whole":
        monkeypatch.setattr(blocks, "CHANNELS_PER_COPY", 4)
        monkeypatch.setattr(blocks, "SCORES_PER_BLOCK", 1)
        monkeypatch.setattr(products, "NUMBERS_PER_THREAD", 1)
    if request.param == "by axis":
        monkeypatch.setattr(blocks, "LARGEST_SCORES", 0)


@pytest.fixture(params=[False, True], ids=["converted", "native"])
def native(request, monkeypatch):
    """Run once as on processors that multiply bfloat16 slowly, and once as on those that multiply it natively."""
    monkeypatch.setattr(blocks, "multiplies_natively", lambda dtype: request.param and dtype == torch.bfloat16)
    monkeypatch.setattr(blocks, "NATIVE_WORK", 0)
    return request.param


@pytest.mark.parametrize("layout", [contiguous, channels_last, slices, irregular, constant])
@pytest.mark.parametrize(
    ("spatial", "axes"),
    [((7,), None), ((5, 4), None), ((3, 17), (0,)), ((3, 17), (1,)), ((1, 6), None), ((1, 1), None)]
    + [((3, 4, 2), axes) for axes in (None, (0,), (1,), (2,), (0, 1), (0, 2), (1, 2))],
    ids=str,
)
@OPERATORS
def test_equals_the_reference(operator, spatial, axes, layout, pieces):
    check(operator, make(operator, spatial=spatial, layout=layout), axes=axes, scale=0.7)


@OPERATORS
@pytest.mark.parametrize("scale", [1e-9, 100], ids=["even", "one key"])
def test_shares_of_the_axes(operator, scale, pieces):
    """Scores that are all equal, and scores whose exponentials overflow unless the largest one is subtracted."""
    check(operator, make(operator, spatial=(5, 4, 3)), scale=scale)


@pytest.mark.parametrize("lowest", [float("-inf"), torch.finfo(torch.float32).min])
@pytest.mark.parametrize("masked", [[(..., 2)], [(slice(2, None),)], [(slice(2, None),), (0, 1), (1, 1)]], ids=str)
def test_masked_keys(masked, lowest, pieces):
    """If a bias masks keys, some pixels have none on the first axes, on the last axes, or on any axis."""
    query, key, value = channels_last(1, (5, 4, 3), [2, 2, 6], torch.float32)
    query[:, 1], key[:, 1] = 1, 0
    for index in masked:
        key[0, 1][index] = lowest
    want = criss_cross_attention(query, key, value, backend="reference")
    with torch.no_grad():
        got = criss_cross_attention(query, key, value)
    torch.testing.assert_close(got, want, equal_nan=True)


def test_large_scores_are_merged_precisely(pieces):
    """In float32, the logarithms of the sums of exponentials would have errors of up to 2^-6 here."""
    query, value = torch.full((1, 1, 6, 4), 2.0**9), torch.randn(1, 6, 6, 4)
    with torch.no_grad():
        got = criss_cross_attention(query, query, value)
    torch.testing.assert_close(got, criss_cross_attention(query, query, value, backend="reference"))


def test_large_images_without_gradients_have_no_array_of_scores(monkeypatch):
    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function in (torch.ops.aten.new_empty.default, torch.ops.aten.new_full.default):
                self.largest = max(self.largest, result.numel())
            return result

    def largest_array(limit):
        monkeypatch.setattr(blocks, "LARGEST_SCORES", limit)
        monkeypatch.setattr(products, "NUMBERS_PER_THREAD", 1)
        query, value = torch.randn(2, 40, 30, 2), torch.randn(2, 40, 30, 4)
        call = Call(query, query, value, Options((0, 1), 1.0, "ieee", -1, "auto"))
        result = torch.empty_like(value)
        with Sizes() as sizes:
            blocks.Blocks(call).forward(result, None)
        return sizes.largest

    scores = 40 * 30 * (40 + 30)  # of an image
    assert largest_array(scores * 4) >= scores
    assert largest_array(scores * 4 - 1) == max(torch.get_num_threads() * 40 * 40, 2 * 40 * 30)


@pytest.mark.parametrize(("spatial", "by_axis"), [((20,), False), ((1, 20), False), ((20, 1), False), ((2, 20), True)])
def test_a_single_line_is_computed_at_once(spatial, by_axis, monkeypatch):
    monkeypatch.setattr(blocks, "LARGEST_SCORES", 0)
    attend = Mock(wraps=blocks.attend_by_axis)
    monkeypatch.setattr(blocks, "attend_by_axis", attend)
    with torch.no_grad():
        criss_cross_attention(*channels_last(1, spatial, [2, 2, 4], torch.float32))
    assert attend.called == by_axis


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", [contiguous, channels_last, slices, irregular])
@pytest.mark.parametrize(("spatial", "axes"), [((5, 4), None), ((3, 17), (0,)), ((1, 6), None), ((3, 4, 2), None)])
@pytest.mark.parametrize(
    ("onednn", "product"), [(False, "_multiply_line"), (True, "_multiply_line_with_onednn")], ids=["mkl", "onednn"]
)
@OPERATORS
def test_equals_the_reference_line_by_line(operator, onednn, product, spatial, axes, layout, one_thread, monkeypatch):
    monkeypatch.setattr(products, "prefers_onednn", lambda: onednn)
    monkeypatch.setattr(products, "LINE_WORK", 0)
    multiply_line = Mock(wraps=getattr(products, product))
    monkeypatch.setattr(products, product, multiply_line)
    arrays = make(operator, spatial=spatial, layout=layout, dtype=torch.float32)
    check(operator, arrays, 3e-6, axes=axes, scale=0.7)
    assert multiply_line.called


def test_line_by_line_is_for_large_products_in_float32_with_one_thread(one_thread):
    def is_by_line(length, channels, dtype=torch.float32, out=torch.float32):
        weights, values = (torch.empty(1, length, width, dtype=dtype, device="meta") for width in (length, channels))
        return products._is_faster_by_line(weights, values, values.to(out))

    assert is_by_line(97, 512)
    assert not is_by_line(97, 64) and not is_by_line(33, 512)
    assert not is_by_line(97, 512, torch.float64) and not is_by_line(97, 512, torch.bfloat16)
    assert not is_by_line(97, 512, out=torch.float64)  # the sums of a float64 residual
    torch.set_num_threads(2)
    assert not is_by_line(97, 512)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_channels_in_the_last_axis(layout):
    arrays = [array.detach().movedim(1, -1).requires_grad_() for array in make(criss_cross_attention, layout=layout)]
    check(criss_cross_attention, arrays, channel_axis=-1)


@pytest.mark.parametrize(
    ("dtype", "residual", "tolerance"),
    [
        (torch.float32, torch.float32, 3e-6),
        (torch.float32, torch.float64, 3e-6),
        (torch.float32, torch.bfloat16, 2e-2),
        (torch.float16, torch.float16, 1e-3),
        (torch.bfloat16, torch.bfloat16, 8e-3),
        (torch.bfloat16, torch.float32, 8e-3),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", [contiguous, channels_last, slices])
def test_precision(dtype, residual, tolerance, layout, pieces, native):
    """Rounding to half precision has an error of 2^-9 (2^-12 in float16)."""
    arrays = [array.detach().to(dtype).requires_grad_() for array in make(criss_cross_residual, layout=layout)]
    check(criss_cross_attention, arrays[:3], tolerance)
    arrays[3] = arrays[3].detach().to(residual).requires_grad_()
    got = check(criss_cross_residual, arrays, tolerance)
    assert [array.dtype for array in got] == [residual, dtype, dtype, dtype, residual, dtype]


def test_gradients_of_query_and_key_survive_large_means(native):
    """A plain product in bfloat16 would round G . v, which the means dominate: the errors would be over 2%."""
    torch.manual_seed(0)
    query, key, value, upstream = channels_last(1, (24, 20), [16, 16, 64, 64], torch.float64)
    arrays = [array.bfloat16().requires_grad_() for array in (query * 0.5, key * 0.5, value + 3)]
    upstream = (upstream + 1).bfloat16().double()
    got = results(criss_cross_attention, arrays, upstream)
    wide = [array.detach().double().requires_grad_() for array in arrays]
    errors = [
        ((ours - want).square().mean() / want.square().mean()).sqrt().item()
        for ours, want in zip(got, results(criss_cross_attention, wide, upstream, backend="reference"), strict=True)
    ]
    out, dquery, dkey, dvalue = errors
    assert dquery < 2**-9 and dkey < 2**-9
    limit = (1.5 if native else 1) * 2**-9
    assert out < limit and dvalue < limit


@pytest.mark.parametrize("spatial", [(32,), (5, 4), (1, 40)], ids=str)
def test_gradients_at_the_initial_gamma_of_zero(spatial, native):
    """With this factor, oneDNN does not write its result."""
    arrays = [
        array.detach().bfloat16().requires_grad_() for array in channels_last(2, spatial, [8, 8, 64, 64], torch.float32)
    ]
    gamma = torch.zeros(1, requires_grad=True)
    out = criss_cross_residual(*arrays, gamma)
    *gradients, residual_gradient, dgamma = torch.autograd.grad(out.sum(), [*arrays, gamma])
    assert all((gradient == 0).all() for gradient in gradients)
    assert (residual_gradient == 1).all() and dgamma != 0


def test_a_float32_gradient_is_not_rounded(native):
    """That of a float32 residual: the gradient of gamma is a sum that may cancel."""
    torch.manual_seed(0)
    *arrays, residual = channels_last(1, (12, 10), [8, 8, 64, 64], torch.float32)
    arrays = [*(array.bfloat16() for array in arrays), residual, torch.ones(1)]
    arrays = [array.requires_grad_() for array in arrays]
    wide = [array.detach().double().requires_grad_() for array in arrays]
    upstream = torch.randn(residual.shape)
    got, want = (
        torch.autograd.grad(criss_cross_residual(*leaves, backend=backend), leaves[-1], upstream.to(leaves[3].dtype))
        for leaves, backend in ((arrays, "auto"), (wide, "reference"))
    )
    assert abs(got[0] - want[0]) < 1e-4


def test_large_products_are_native_if_their_temporaries_are_small(monkeypatch):
    monkeypatch.setattr(blocks, "multiplies_natively", lambda dtype: dtype == torch.bfloat16)

    def is_native(spatial, channels, dtype=torch.bfloat16):
        query, value = (torch.empty(1, *spatial, width, dtype=dtype, device="meta") for width in (8, channels))
        options = Options(tuple(range(len(spatial))), 1.0, "ieee", -1, "auto")
        return blocks.Blocks(Call(query, query, value, options)).product_dtype == torch.bfloat16

    assert is_native((97, 97), 512) and is_native((33, 33), 512)
    assert not is_native((17, 17), 64)  # converting is faster
    assert not is_native((4096,), 64)  # a line's map of weights is large
    assert not is_native((97, 97), 512, torch.float16)


def test_no_products_of_onednn_if_it_is_switched_off(monkeypatch):
    monkeypatch.setattr(products, "_is_amd_with_avx512", lambda: True)
    assert products.prefers_onednn()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not products.prefers_onednn()
        assert not products.multiplies_natively(torch.bfloat16)
