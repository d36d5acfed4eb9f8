"""The operators for a CPU within torch: autograd, compilation, export, tensor subclasses, threads and slices."""

import sys
import threading
import weakref
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch
from cpu_calls import OPERATORS, check, contiguous, make, results
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils.flop_counter import FlopCounterMode

from ccnet.kernels import criss_cross_attention, criss_cross_residual, recomputed_projection, split_channels
from ccnet.kernels.torch_ops.cpu import operators as cpu_operators

pytestmark = pytest.mark.usefixtures("poisoned_memory", "operators_on_small_calls")

OPTIONS = ([0, 1], 0.5, 1)


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


@pytest.mark.parametrize(("options", "scores"), [({}, 360), ({"axes": (1,)}, 160), ({"channel_axis": -1}, 324)])
def test_calls_with_few_scores_use_the_reference(options, scores, monkeypatch):
    """One score per pixel and key: 2 (5 4) (5 + 4), 2 (5 4) 4, and 2 (3 6) (3 + 6) if the channels are last."""
    query = torch.randn(2, *((3, 6, 8) if "channel_axis" in options else (8, 5, 4)))
    attend = Mock(wraps=cpu_operators.attend)
    monkeypatch.setattr(cpu_operators, "attend", attend)
    for limit, uses_operators in ((scores, True), (scores + 1, False)):
        monkeypatch.setattr(cpu_operators, "MIN_SCORES", limit)
        criss_cross_attention(query, query, query, **options)
        assert attend.called == uses_operators
        attend.reset_mock()


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


def test_split_of_slices_whose_gradients_are_not_consecutive_slices_of_one_tensor():
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    one, other = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    first, second = one.split(2, dim=1)
    for grads in ((first, second), (second, first), (first, second.mT), (first, other[:, 2:])):
        (got,) = torch.autograd.grad(split_channels(x, [2, 2]), x, grads)
        assert torch.equal(got, torch.cat(grads, dim=1))


def test_split_of_a_tensor_whose_slices_are_concatenated_again():
    """Their gradients are slices of one tensor even where they are differentiated again."""
    x = torch.randn(1, 7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: torch.cat(split_channels(x, [2, 2, 3]), dim=1) ** 2, x)


@pytest.mark.parametrize("loops", [1, 2, 3])
def test_only_the_projections_before_the_last_are_recomputed(loops):
    x, weight = (torch.randn(size).requires_grad_() for size in ([1, 6, 5, 4], [12, 6, 1, 1]))
    made = []  # the memory of each projection

    def project(x, weight):
        projected = torch.nn.functional.conv2d(x, weight)
        made.append(weakref.ref(projected.untyped_storage()))
        return projected

    def function(x):
        for _ in range(loops):
            with recomputed_projection(project, x, weight) as projected:
                x = criss_cross_attention(*split_channels(projected, [3, 3, 6]))
        return x

    out = function(x)
    assert [kept() is not None for kept in made] == [False] * (loops - 1) + [True]
    torch.autograd.grad(out.sum(), x, retain_graph=True)
    assert len(made) == loops + (loops - 1)
    assert not any(kept() for kept in made)
    torch.autograd.grad(out.sum(), x)
    assert len(made) == loops + (loops - 1) + loops


def test_a_projection_may_be_modified_before_it_is_used():
    def gradients(project):
        torch.manual_seed(0)
        x, weight = (torch.randn(size).requires_grad_() for size in ([1, 6, 5, 4], [12, 6, 1, 1]))
        out = x
        for _ in range(2):
            with project(torch.nn.functional.conv2d, out, weight) as projected:
                projected.relu_()
                out = criss_cross_attention(*split_channels(projected, [3, 3, 6]))
        return torch.autograd.grad(out.sin().sum(), (x, weight))

    want = gradients(lambda project, *inputs: nullcontext(project(*inputs)))
    for ours, oracle in zip(gradients(recomputed_projection), want, strict=True):
        torch.testing.assert_close(ours, oracle)


def test_modifying_a_projection_after_it_was_used_is_an_error():
    x, weight = (torch.randn(size).requires_grad_() for size in ([1, 6, 5, 4], [12, 6, 1, 1]))
    with recomputed_projection(torch.nn.functional.conv2d, x, weight) as projected:
        out = criss_cross_attention(*split_channels(projected, [3, 3, 6]))
    with torch.no_grad():
        projected.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


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
