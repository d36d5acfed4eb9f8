"""The operators for a CPU agree with the reference in every layout, dtype and mode of torch."""

import sys
import threading
import weakref
from unittest.mock import Mock

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils.flop_counter import FlopCounterMode

from ccnet.kernels import criss_cross_attention, criss_cross_residual, recomputed_projection, split_channels
from ccnet.kernels.call import Call, Options
from ccnet.kernels.torch_ops.cpu import blocks as cpu_blocks
from ccnet.kernels.torch_ops.cpu import operators as cpu_operators
from ccnet.kernels.torch_ops.cpu import products as cpu_products

OPERATORS = pytest.mark.parametrize(
    "operator", [criss_cross_attention, criss_cross_residual], ids=["attention", "residual"]
)
OPTIONS = ([0, 1], 0.5, 1)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill new memory with NaN, so that missing stores are detected."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["whole", "split"])
def pieces(request, monkeypatch):
    """Run once as small inputs do, and once in blocks of one image and products of one line, as for large inputs."""
    if request.param == "split":
        monkeypatch.setattr(cpu_blocks, "SCORES_PER_BLOCK", 1)
        monkeypatch.setattr(cpu_products, "NUMBERS_PER_THREAD", 1)


@pytest.fixture(params=[False, True], ids=["converted", "native"])
def native(request, monkeypatch):
    """Run once as on processors that multiply bfloat16 slowly, and once as on those that multiply it natively."""
    monkeypatch.setattr(cpu_blocks, "multiplies_natively", lambda dtype: request.param and dtype == torch.bfloat16)
    monkeypatch.setattr(cpu_blocks, "NATIVE_WORK", 0)
    return request.param


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
    for ours, want in zip(got, results(operator, wide, upstream, backend="reference", **options), strict=True):
        assert (ours - want).abs().max() <= tolerance * max(1, want.abs().max())
    with torch.no_grad():
        assert torch.equal(operator(*arrays, **options), got[0])
    return got


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


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", [contiguous, channels_last, slices, irregular])
@pytest.mark.parametrize(("spatial", "axes"), [((5, 4), None), ((3, 17), (0,)), ((1, 6), None), ((3, 4, 2), None)])
@OPERATORS
def test_equals_the_reference_if_onednn_multiplies_line_by_line(
    operator, spatial, axes, layout, one_thread, monkeypatch
):
    monkeypatch.setattr(cpu_products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(cpu_products, "LINE_WORK", 0)
    line_product = Mock(wraps=cpu_products._line_product)
    monkeypatch.setattr(cpu_products, "_line_product", line_product)
    arrays = make(operator, spatial=spatial, layout=layout, dtype=torch.float32)
    check(operator, arrays, 3e-6, axes=axes, scale=0.7)
    assert line_product.called


def test_line_by_line_is_for_large_products_in_float32_with_one_thread(one_thread, monkeypatch):
    monkeypatch.setattr(cpu_products, "prefers_onednn", lambda: True)

    def is_by_line(length, channels, dtype=torch.float32):
        weights, values = (torch.empty(1, length, width, dtype=dtype, device="meta") for width in (length, channels))
        return cpu_products._is_faster_by_line(weights, values)

    assert is_by_line(97, 512)
    assert not is_by_line(97, 64) and not is_by_line(33, 512)
    assert not is_by_line(97, 512, torch.float64) and not is_by_line(97, 512, torch.bfloat16)
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
    assert max(dquery, dkey) < 2**-9
    assert max(out, dvalue) < (1.5 if native else 1) * 2**-9


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
    monkeypatch.setattr(cpu_blocks, "multiplies_natively", lambda dtype: dtype == torch.bfloat16)

    def is_native(spatial, channels, dtype=torch.bfloat16):
        query, value = (torch.empty(1, *spatial, width, dtype=dtype, device="meta") for width in (8, channels))
        options = Options(tuple(range(len(spatial))), 1.0, "ieee", -1, "auto")
        return cpu_blocks.Blocks(Call(query, query, value, options)).product_dtype == torch.bfloat16

    assert is_native((97, 97), 512) and is_native((33, 33), 512)
    assert not is_native((17, 17), 64)  # converting is faster
    assert not is_native((4096,), 64)  # a line's map of weights is large
    assert not is_native((97, 97), 512, torch.float16)


def test_no_products_of_onednn_if_it_is_switched_off(monkeypatch):
    monkeypatch.setattr(cpu_products, "_is_amd_with_avx512", lambda: True)
    assert cpu_products.prefers_onednn()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not cpu_products.prefers_onednn()
        assert not cpu_products.multiplies_natively(torch.bfloat16)


def test_autocast_changes_nothing():
    arrays = make(criss_cross_residual, dtype=torch.float32)
    upstream = torch.randn(arrays[2].shape)
    with torch.autocast("cpu", torch.bfloat16):
        under = results(criss_cross_residual, arrays, upstream)
    for ours, want in zip(under, results(criss_cross_residual, arrays, upstream), strict=True):
        assert torch.equal(ours, want)


@pytest.mark.slow
@OPERATORS
def test_first_and_second_derivatives(operator):
    arrays = make(operator, batch=1, spatial=(2, 2))
    assert torch.autograd.gradcheck(operator, arrays)
    assert torch.autograd.gradgradcheck(operator, arrays)


def test_first_gradients_may_be_taken_twice():
    arrays = make(criss_cross_attention)
    out = criss_cross_attention(*arrays)
    once, twice = (torch.autograd.grad(out.sum(), arrays, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, once, twice))


@pytest.mark.parametrize("changed", range(5))
def test_an_in_place_change_before_the_backward_pass_is_an_error(changed):
    arrays = make(criss_cross_residual)
    out = criss_cross_residual(*arrays)
    with torch.no_grad():
        arrays[changed].mul_(2)
    if changed == 3:  # the backward pass does not read the residual
        out.sum().backward()
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.slow
@OPERATORS
def test_opcheck(operator):
    """Schema, autograd registration, fake kernels, and tracing with static and dynamic shapes."""
    query, key, value, *others = make(operator)
    residual, gamma = others or (None, None)
    forward = torch.ops.ccnet.cpu_attention.default
    torch.library.opcheck(forward, (query, key, value, residual, gamma, *OPTIONS, True))
    arrays = [array.detach() for array in (query, key, value)]
    _, weights = forward(*arrays, None, gamma, *OPTIONS, True)
    for joined in (False, True):
        arguments = (*arrays, weights, arrays[2], None if gamma is None else gamma.detach(), *OPTIONS, joined)
        torch.library.opcheck(torch.ops.ccnet.cpu_attention_backward.default, arguments)


@OPERATORS
def test_compiles_without_a_graph_break_and_keeps_the_operators(operator):
    arrays = make(operator, dtype=torch.float32)
    upstream = torch.randn(arrays[2].shape)
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    with torch.profiler.profile() as profile:
        got = results(compiled, arrays, upstream)
    assert {"ccnet::cpu_attention", "ccnet::cpu_attention_backward"} <= {event.key for event in profile.events()}
    for ours, want in zip(got, results(operator, arrays, upstream), strict=True):
        assert torch.allclose(ours, want, atol=1e-5)


class _Network(torch.nn.Module):
    def forward(self, query, key, value):
        return criss_cross_attention(query, key, value)


def test_exported_programs_and_traces_contain_standard_operations_only():
    arrays = [array.detach() for array in make(criss_cross_attention)]
    exported = torch.export.export(_Network(), tuple(arrays))
    assert "ccnet." not in str(exported.graph)
    traced = torch.jit.trace(_Network(), arrays)
    assert "ccnet::" not in str(traced.graph)
    want = criss_cross_attention(*arrays)
    assert torch.allclose(exported.module()(*arrays), want)
    assert torch.allclose(traced(*arrays), want)


def test_flops_are_counted():
    """Dispatch modes see the operations of the reference: 2 (D + C) FLOPs for each of H + W scores per pixel."""
    arrays = [array.detach() for array in make(criss_cross_attention)]
    with FlopCounterMode(display=False) as counter:
        criss_cross_attention(*arrays)
    assert counter.get_total_flops() == 2 * (2 * 5 * 4) * (5 + 4) * (3 + 6)


def test_subclasses_of_tensor_use_the_reference(monkeypatch):
    class Mine(torch.Tensor):
        pass

    monkeypatch.setattr(cpu_operators, "attend", lambda call: pytest.fail("subclasses may redefine any operation"))
    arrays = [array.detach().as_subclass(Mine) for array in make(criss_cross_attention)]
    assert type(criss_cross_attention(*arrays)) is Mine


def test_distributed_tensors():
    """One process suffices: torch rejects operations that mix plain and distributed tensors."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        arrays = make(criss_cross_residual, dtype=torch.float32, layout=contiguous)
        placements = [Shard(0)] * 4 + [Replicate()]
        spread = [distribute_tensor(array, mesh, [at]) for array, at in zip(arrays, placements, strict=True)]
        results = []
        for inputs in (arrays, [array.requires_grad_() for array in spread]):
            out = criss_cross_residual(*inputs)
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
        for want, got in zip(*results, strict=True):
            assert torch.allclose(got.full_tensor(), want, atol=1e-4)
    finally:
        distributed.destroy_process_group()


def test_gradients_of_slices_need_no_copy():
    projected = torch.randn(2, 5, 4, 12).movedim(-1, 1).requires_grad_()
    seen = []
    query, key, value = split_channels(projected, [3, 3, 6])
    value.register_hook(seen.append)
    out = criss_cross_attention(query, key, value)
    (got,) = torch.autograd.grad(out.sum(), projected)
    assert got.untyped_storage().data_ptr() == seen[0].untyped_storage().data_ptr()
    want = criss_cross_attention(*projected.split([3, 3, 6], 1), backend="reference").sum()
    assert torch.allclose(got, *torch.autograd.grad(want, projected), atol=1e-5)


def test_split_of_slices_that_are_used_otherwise():
    projected = torch.randn(2, 12, 5, 4, dtype=torch.float64, requires_grad=True)

    def function(split):
        query, key, value = split(projected, [3, 3, 6])
        return (criss_cross_attention(query, key, value) + value).square().sum() + query.sum()

    ours, want = (function(split) for split in (split_channels, lambda array, sizes: array.split(sizes, 1)))
    first = [torch.autograd.grad(loss, projected, create_graph=True)[0] for loss in (ours, want)]
    assert torch.allclose(*first)
    assert torch.allclose(*(torch.autograd.grad(grad.square().sum(), projected)[0] for grad in first))
    (unused,) = torch.autograd.grad(split_channels(projected, [3, 3, 6])[1].sum(), projected)
    assert unused[:, 3:6].eq(1).all() and unused.sum() == unused[:, 3:6].numel()


def test_split_of_a_tensor_whose_slices_are_concatenated_again():
    """Their gradients are slices of one tensor even where they are differentiated again."""
    x = torch.randn(1, 7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: torch.cat(split_channels(x, [2, 2, 3]), dim=1) ** 2, x)


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@OPERATORS
def test_a_result_without_a_gradient_gives_none(operator):
    arrays = make(operator)
    _NoGradient.apply(operator(*arrays)).sum().backward()
    assert all(array.grad is None or not array.grad.any() for array in arrays)


@pytest.mark.parametrize("loops", [1, 2, 3])
def test_only_the_projections_before_the_last_are_recomputed(loops):
    x, weight = (torch.randn(size).requires_grad_() for size in ([1, 6, 5, 4], [12, 6, 1, 1]))
    count = 0

    def project(x, weight):
        nonlocal count
        count += 1
        return torch.nn.functional.conv2d(x, weight)

    def function(x):
        for _ in range(loops):
            with recomputed_projection(project, x, weight) as projected:
                x = criss_cross_attention(*split_channels(projected, [3, 3, 6]))
        return x

    out = function(x)
    torch.autograd.grad(out.sum(), x, retain_graph=True)
    assert count == loops + (loops - 1)
    torch.autograd.grad(out.sum(), x)
    assert count == loops + (loops - 1) + loops


def test_a_graph_without_a_backward_pass_is_freed_at_once():
    """A saved result that refers to its own graph would wait for the garbage collector, and keep the memory."""
    x, weight = (torch.randn(size).requires_grad_() for size in ([1, 6, 5, 4], [12, 6, 1, 1]))
    with recomputed_projection(torch.nn.functional.conv2d, x, weight) as projected:
        out = projected.exp()  # saves its result
    kept = weakref.ref(out)
    del out, projected
    assert kept() is None


def test_the_backward_pass_survives_a_forward_pass_in_another_thread_at_any_moment():
    x, weight = (torch.randn(size).requires_grad_() for size in ([1, 4, 3, 3], [4, 4, 1, 1]))

    def loss():
        with recomputed_projection(torch.nn.functional.conv2d, x, weight) as projected:
            return projected[:, :2].mul(projected[:, 2:]).sum()

    def gradient(moment):
        """Return the gradient with another thread's forward pass before a line of the hook that reads a tensor."""
        lines = 0

        def trace(frame, event, argument):
            nonlocal lines
            if frame.f_code.co_name != "unpack":
                return None
            if event == "line":
                lines += 1
                if lines == moment:
                    thread = threading.Thread(target=loss)
                    thread.start()
                    thread.join()
            return trace

        out, former = loss(), sys.gettrace()
        sys.settrace(trace)  # on a CPU, the backward pass runs in this thread
        try:
            return torch.autograd.grad(out, x)[0], lines
        finally:
            sys.settrace(former)

    want, lines = gradient(moment=0)
    assert lines > 5
    for moment in range(1, lines + 1):
        assert torch.equal(gradient(moment)[0], want)


def test_two_threads():
    arrays = make(criss_cross_residual, spatial=(9, 7))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check(criss_cross_residual, arrays)
    finally:
        torch.set_num_threads(threads)
