"""The Triton kernels as torch operators: compilation, export, derivatives, unsupported calls."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_calls import INTERPRETED, make

from ccnet.kernels import criss_cross_attention, criss_cross_residual, fallback, set_float32_precision
from ccnet.kernels.torch_ops import dispatch, launch, operators  # noqa: F401, registers the operators

pytestmark = INTERPRETED


@pytest.mark.parametrize(("training", "channel_axis"), [(True, 1), (True, -1), (False, 1)])
def test_opcheck(training, channel_axis):
    query, key, value, residual, gamma = (
        (array if array.ndim == 1 else array.movedim(-1, channel_axis)).detach().requires_grad_(training)
        for array in make((3, 4), 8, 12, torch.float32)
    )
    options = ([0, 1], 1.0, "tf32x3", channel_axis)
    torch.library.opcheck(torch.ops.ccnet.criss_cross.default, (query, key, value, *options))
    torch.library.opcheck(
        torch.ops.ccnet.criss_cross_residual.default, (query, key, value, residual, gamma, *options, training)
    )


def test_compiles_without_a_graph_break_for_every_size():
    compiled = torch.compile(
        lambda *arrays: criss_cross_residual(*arrays, backend="triton").relu(),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for spatial in [(3, 4), (5, 2)]:
        *arrays, gamma = make(spatial, 8, 12, torch.float32)
        inputs = [*(array.movedim(-1, 1) for array in arrays), gamma]
        want = criss_cross_residual(*inputs, backend="triton").relu()
        got = compiled(*inputs)
        assert torch.equal(got, want)
        gradients = [torch.autograd.grad(out.sum(), inputs) for out in (got, want)]
        assert all(torch.equal(ours, eager) for ours, eager in zip(*gradients, strict=True))


def test_export_uses_the_reference():
    class Module(torch.nn.Module):
        def forward(self, *arrays):
            return criss_cross_attention(*arrays)

    program = torch.export.export(Module(), tuple(torch.randn(1, 4, 3, 3) for _ in range(3)))
    assert "ccnet" not in str(program.graph)


def test_second_derivatives_are_rejected():
    query, key, value, _, _ = make((3, 4), 8, 12, torch.float32)
    out = criss_cross_attention(query, key, value, channel_axis=-1, backend="triton")
    (gradient,) = torch.autograd.grad(out.sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.sum().backward()


def test_unsupported_calls_are_rejected():
    arrays = [torch.randn(1, 2, 2, 2, dtype=torch.float64)] * 3
    with pytest.raises(ValueError, match=r"float64; use backend='reference'"):
        criss_cross_attention(*arrays, backend="triton")
    arrays = [torch.randn(1, 300, 2, 2)] * 3
    with pytest.raises(ValueError, match="more than 128 query channels"):
        criss_cross_attention(*arrays, backend="triton")
    with pytest.raises(ValueError, match="precision 'fp8' is unknown"):
        set_float32_precision("fp8")


def test_auto_falls_back_with_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    dispatch._gpu_obstacle.cache_clear()
    obstacle = dispatch._device_obstacle("cuda", 0, "float32")
    dispatch._gpu_obstacle.cache_clear()
    assert obstacle == "the GPU has compute capability 7.5, below 8.0"
    fallback.warn_once.cache_clear()
    for _ in range(2):
        dispatch._warn_once(obstacle)
    assert len(caplog.records) == 1


def test_a_call_that_the_kernels_do_not_support_on_a_gpu_runs_in_the_reference(caplog):
    fallback.warn_once.cache_clear()
    with FakeTensorMode():
        query, value = (torch.empty(1, channels, 4, 5, device="cuda") for channels in (300, 6))
        out = criss_cross_attention(query, query, value)
    assert (out.shape, out.device.type) == (value.shape, "cuda")
    assert "falls back to the reference: more than 128 query channels" in caplog.text


def test_the_kernels_need_a_gpu_or_the_interpreter(monkeypatch):
    monkeypatch.setattr(launch, "is_interpreted", lambda: False)
    arrays = [torch.randn(1, 2, 2, 2)] * 3
    with pytest.raises(ValueError, match="the arrays are on cpu, but Triton needs an NVIDIA or AMD GPU"):
        criss_cross_attention(*arrays, backend="triton")


def test_the_interpreter_does_not_run_bfloat16():
    """It multiplies the bits of such numbers as integers, without an error."""
    arrays = [torch.randn(1, 2, 2, 2, dtype=torch.bfloat16)] * 3
    with pytest.raises(ValueError, match=r"interpreter .* computes bfloat16 wrongly; use backend='reference'"):
        criss_cross_attention(*arrays, backend="triton")


def test_backward_writes_no_zeros():
    """Outputs without a gradient get no zeros: autograd would fill arrays as large as the value."""
    *arrays, gamma = make((3, 4), 8, 12, torch.float32)
    out = criss_cross_residual(*arrays, gamma, channel_axis=-1, backend="triton")
    with torch.profiler.profile() as profile:
        torch.autograd.grad(out, [*arrays, gamma], torch.ones_like(out))
    assert not {"aten::zeros", "aten::zeros_like", "aten::zero_"} & {event.name for event in profile.events()}
