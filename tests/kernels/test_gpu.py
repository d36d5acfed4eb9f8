"""The Triton kernels on a GPU: bfloat16, determinism, CUDA graphs, threads, large offsets.

python -m pytest tests/kernels/test_gpu.py
compute-sanitizer --tool memcheck python -m pytest tests/kernels/test_gpu.py -k sanitizer
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ccnet.benchmarks.comparison import peers as benchmark_peers
from ccnet.benchmarks.tuning import warm_cache
from ccnet.kernels import criss_cross_attention, criss_cross_residual, split_channels
from ccnet.kernels.torch_ops.devices import device_of

passes = pytest.importorskip("ccnet.kernels.torch_ops.passes", reason="triton is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SHAPES = warm_cache.TEST_SHAPES


def make(shape, d=64, c=512, dtype=torch.bfloat16, deviation=1.0):
    """Return query, key, value and residual as NCHW views of channels-last memory, and gamma.

    The scores have a standard deviation of ``deviation``.
    """
    torch.manual_seed(0)
    batch, *spatial = shape
    wide = deviation**0.5 / d**0.25

    def normal(channels, scale=1.0):
        array = torch.randn(batch, *spatial, channels, device="cuda") * scale
        return array.to(dtype).movedim(-1, 1).requires_grad_()

    gamma = torch.tensor([0.7], device="cuda", requires_grad=True)
    return [normal(d, wide), normal(d, wide), normal(c), normal(c), gamma]


def results(function, inputs, dtype):
    """Return the output and the gradients of all inputs, computed in ``dtype``; gamma is in float32 as in training."""
    leaves = [array.detach().to(dtype if array.ndim > 1 else torch.float32).requires_grad_() for array in inputs]
    out = function(*leaves)
    generator = torch.Generator("cuda").manual_seed(1)
    upstream = torch.randn(out.shape, device="cuda", generator=generator).bfloat16().to(dtype)
    return [out, *torch.autograd.grad(out, leaves, upstream)]


def triton(*arrays):
    return criss_cross_attention(*arrays, backend="triton")


def reference(*arrays):
    return criss_cross_attention(*arrays, backend="reference")


@pytest.mark.parametrize("deviation", [1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_half_precision_is_as_accurate_as_torch(shape, dtype, deviation):
    """The error is at most twice that of plain torch operations in the same dtype, as in FlashAttention's tests."""
    inputs = make(shape, dtype=dtype, deviation=deviation)[:3]
    plain = benchmark_peers.einsum if len(shape) == 3 else reference
    oracle = results(reference, inputs, torch.float64)
    ours, theirs = results(triton, inputs, dtype), results(plain, inputs, dtype)
    for index, (want, got, other) in enumerate(zip(oracle, ours, theirs, strict=True)):
        want32 = want.to(dtype)
        rounding = 2 * (want32 + 0.3 - 0.3 - want32).abs().max().item()
        error, allowed = (got - want).abs().max().item(), 2 * (other - want).abs().max().item()
        assert error <= allowed + rounding, (index, error, allowed, rounding)
        assert (got - want).norm() <= 5e-3 * want.norm() * (1 if dtype == torch.float16 else 4), index


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32(shape):
    inputs = make(shape, dtype=torch.float32, deviation=4.0)[:3]
    oracle, ours = results(reference, inputs, torch.float64), results(triton, inputs, torch.float32)
    for want, got in zip(oracle, ours, strict=True):
        assert (got - want).abs().max() <= 4e-6 * want.abs().max()


def test_two_runs_are_bitwise_equal():
    inputs = make((4, 97, 130))
    runs = [
        results(lambda *arrays: criss_cross_residual(*arrays, backend="triton"), inputs, torch.bfloat16)
        for _ in range(2)
    ]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("shape", [(8, 97, 97), (2, 128, 256), (1, 66, 70, 80)], ids=str)
def test_descriptors_and_overlap_change_nothing(shape, monkeypatch):
    """Results are bitwise equal to those through pointers, with one pass after the other."""
    torch_device = device_of(torch.cuda.current_device())
    if not torch_device.descriptors:
        pytest.skip("needs a Hopper GPU")
    inputs = make(shape)

    def run():
        return results(lambda *arrays: criss_cross_residual(*arrays, backend="triton"), inputs, torch.bfloat16)

    many = []
    for _ in range(10):
        many.append(run())
        # Poison the memory of the next results: a pass that did not wait would read NaN.
        poison = [torch.full_like(array, float("nan")) for array in (*many[-1], *many[-1])]
        del poison
    plain = torch_device._replace(descriptors=False, overlaps=False)
    monkeypatch.setattr(passes, "device_of", lambda index: plain)
    want = run()
    for ours in many:
        assert all(torch.equal(*pair) for pair in zip(ours, want, strict=True))


@pytest.mark.parametrize("shape", [(8, 97, 97), (1, 128, 256), (1, 66, 70, 80)], ids=str)
def test_gradients_of_channel_slices_are_those_of_separate_tensors(shape):
    inputs = make(shape)
    projected = torch.cat([array.detach() for array in inputs[:3]], dim=1).requires_grad_()
    sizes = [array.shape[1] for array in inputs[:3]]

    def joined(projected, residual, gamma):
        return criss_cross_residual(*split_channels(projected, sizes), residual, gamma, backend="triton")

    _, *got = results(joined, [projected, *inputs[3:]], torch.bfloat16)
    _, *want = results(lambda *arrays: criss_cross_residual(*arrays, backend="triton"), inputs, torch.bfloat16)
    assert torch.equal(got[0], torch.cat(want[:3], dim=1))


def test_cuda_graph():
    inputs = make((1, 97, 97))
    with torch.no_grad():
        for _ in range(3):
            want = criss_cross_residual(*inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = criss_cross_residual(*inputs)
    out.zero_()
    graph.replay()
    assert torch.equal(out, want)


def test_a_new_thread_can_launch_the_kernels():
    """They are compiled, and the memory is in the allocator's cache, so nothing else makes a CUDA context current."""
    inputs = make((1, 97, 97))
    for _ in range(2):
        want = criss_cross_residual(*inputs)
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(criss_cross_residual, *inputs).result()
    assert torch.equal(got, want)


def test_compiles_for_every_size():
    compiled = torch.compile(lambda *arrays: criss_cross_residual(*arrays).relu(), fullgraph=True, dynamic=True)
    for shape in [(1, 33, 20), (2, 40, 65)]:
        inputs = make(shape)
        got, want = compiled(*inputs), criss_cross_residual(*inputs, backend="triton").relu()
        assert torch.equal(got, want)
        gradients = [torch.autograd.grad(out.sum(), inputs) for out in (got, want)]
        assert all(torch.allclose(ours, eager) for ours, eager in zip(*gradients, strict=True))


def test_auto_uses_the_kernels_and_the_reference_for_float64():
    inputs = make((1, 9, 8))[:3]
    assert torch.equal(criss_cross_attention(*inputs), triton(*inputs))
    assert criss_cross_attention(*(array.double() for array in inputs)).dtype == torch.float64


def test_offsets_beyond_32_bits():
    """If value has over 2^31 elements, the last image gives the same result as on its own."""
    batch = 2**31 // (128 * 256 * 512) + 2
    if torch.cuda.mem_get_info()[0] < 5 * batch * 128 * 256 * 512 * 2:
        pytest.skip("needs 45 GB of free memory")
    query, key = (torch.randn(batch, 128, 256, 64, device="cuda", dtype=torch.bfloat16) / 8 for _ in range(2))
    value = torch.randn(batch, 128, 256, 512, device="cuda", dtype=torch.bfloat16)
    options = {"channel_axis": -1, "backend": "triton"}
    alone = criss_cross_attention(query[-1:], key[-1:], value[-1:], **options)
    assert torch.equal(criss_cross_attention(query, key, value, **options)[-1:], alone)


@pytest.mark.parametrize(("shape", "c"), [((1, 17, 33), 40), ((1, 130, 5), 40), ((1, 3, 70), 64)], ids=str)
def test_small_for_sanitizer(shape, c):
    """On a Hopper GPU, the last one uses tensor descriptors."""
    inputs = make(shape, d=24, c=c)
    gradients = results(lambda *arrays: criss_cross_residual(*arrays, backend="triton"), inputs, torch.bfloat16)
    assert all(array.isfinite().all() for array in gradients)


@pytest.mark.parametrize("length", [16, 64, 97, 129, 200, 256, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_branch_of_the_rule_launches(dtype, length):
    inputs = make((1, 2, length), c=96, dtype=dtype)[:3]
    out = criss_cross_attention(*inputs, axes=(1,), backend="triton")
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), inputs))
