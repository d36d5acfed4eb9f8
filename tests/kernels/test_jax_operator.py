"""The operator on JAX arrays: agreement with the torch reference, transformations, and the binding of launches."""

import itertools
import os
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_reference import CASES

from ccnet.kernels import criss_cross_attention, criss_cross_residual, criss_cross_weights, fallback
from ccnet.kernels.launches import plan, tiles

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
import jax.numpy as jnp  # noqa: E402
from jax.sharding import Mesh, PartitionSpec  # noqa: E402

pytestmark = pytest.mark.slow


OPERATORS = [criss_cross_attention, criss_cross_residual]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


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

    return [
        np.asarray(x) for x in (jax.jit(both) if jit else both)(list(map(jnp.asarray, arrays)), jnp.asarray(upstream))
    ]


def used(function, arrays):
    return arrays[:3] if function is criss_cross_attention else arrays


def agree(ours, theirs, tolerance):
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) < tolerance * max(1, np.abs(b).max(initial=0)), (
            f"result {index} (output, then gradients)"
        )


@pytest.mark.parametrize(("spatial", "axes"), CASES, ids=str)
def test_reference_equals_torch_in_float64(spatial, axes):
    arrays = make(spatial)
    function = OPERATORS[len(axes) % 2]
    args = used(function, arrays), arrays[3]
    options = {"axes": axes, "scale": 0.7, "channel_axis": -1}
    agree(jax_result(function, *args, **options), torch_result(function, *args, **options), 1e-10)


@pytest.mark.parametrize("spatial", [(6,), (4, 5), (2, 3, 4)], ids=str)
def test_channels_first_equals_channels_last(spatial):
    arrays = make(spatial)
    want = criss_cross_residual(*map(jnp.asarray, arrays), channel_axis=-1)
    first = [jnp.moveaxis(array, -1, 1) for array in arrays[:4]]
    assert jnp.abs(jnp.moveaxis(criss_cross_residual(*first, arrays[4] + jnp.zeros(1)), 1, -1) - want).max() < 1e-12


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("function", OPERATORS)
def test_jit_grad_and_vmap_agree(function, dtype):
    """float32 uses the primitives that lower to kernels on a GPU, float64 the reference."""
    arrays = [jnp.asarray(array) for array in used(function, make((4, 5), batch=6, dtype=dtype))]
    attend = partial(function, channel_axis=-1)
    tolerance = 1e-10 if dtype is np.float64 else 1e-5
    images, gamma = arrays[:4], arrays[4:]

    def loss(*arrays):
        return (jnp.sin(attend(*arrays)) * jnp.arange(5, dtype=dtype)).sum()

    numbers = tuple(range(len(arrays)))
    want, gradients = attend(*arrays), jax.jit(jax.grad(loss, numbers))(*arrays)
    agree([jax.jit(attend)(*arrays)], [want], tolerance)
    agree(gradients, jax.grad(loss, numbers)(*arrays), tolerance)

    folded = [image.reshape(3, 2, *image.shape[1:]) for image in images]
    axes = (0,) * len(images) + (None,) * len(gamma)
    agree([jax.vmap(attend, axes)(*folded, *gamma).reshape(want.shape)], [want], tolerance)
    total = jax.jit(jax.grad(lambda *arrays: jax.vmap(loss, axes)(*arrays).sum(), numbers))
    mapped = [g.reshape(a.shape) for g, a in zip(total(*folded, *gamma), arrays, strict=True)]
    agree(mapped, gradients, tolerance * (1 if dtype is np.float64 else 10))


def test_vmap_over_gamma_and_over_one_argument():
    *images, gamma = (jnp.asarray(array) for array in make((4, 5), dtype=np.float32))
    attend = partial(criss_cross_residual, channel_axis=-1)
    gammas = jnp.stack([gamma, 2 * gamma, 3 * gamma])
    want = jnp.stack([attend(*images, each) for each in gammas])
    agree([jax.vmap(attend, (None,) * 4 + (0,))(*images, gammas)], [want], 1e-5)

    def loss(gamma, value):
        return (attend(*images[:2], value, images[3], gamma) ** 2).sum()

    each = [jax.grad(loss, (0, 1))(gamma, images[2]) for gamma in gammas]
    mapped = jax.vmap(jax.grad(loss, (0, 1)), (0, None))(gammas, images[2])
    agree(mapped, [jnp.stack(parts) for parts in zip(*each, strict=True)], 1e-3)


def test_shard_map_over_the_batch():
    """Each shard attends within its own images; the gradient of the shared gamma is summed over the shards."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    split, whole = PartitionSpec("batch"), PartitionSpec()
    arrays = [jnp.asarray(array) for array in make((4, 5), dtype=np.float32)]
    attend = partial(criss_cross_residual, channel_axis=-1)
    sharded = jax.shard_map(attend, mesh=mesh, in_specs=(split,) * 4 + (whole,), out_specs=split)
    numbers = tuple(range(5))
    losses = [lambda *arrays, f=f: (f(*arrays) ** 2).sum() for f in (sharded, attend)]
    agree([jax.jit(sharded)(*arrays)], [attend(*arrays)], 1e-6)
    agree(*(jax.jit(jax.grad(loss, numbers))(*arrays) for loss in losses), 1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_is_widened(dtype, tolerance):
    arrays = [jnp.asarray(array).astype(dtype) for array in make((6, 5))]
    wide = [np.array(array.astype(jnp.float64)) for array in arrays]
    got = criss_cross_residual(*arrays, channel_axis=-1)
    want = criss_cross_residual(*map(torch.from_numpy, wide), channel_axis=-1).numpy()
    assert got.dtype == dtype
    assert np.abs(np.asarray(got, np.float64) - want).max() < 2 * tolerance
    assert jnp.isfinite(criss_cross_attention(*(40 * array for array in arrays[:3]), channel_axis=-1)).all()


@pytest.mark.parametrize("recurrence", [1, 2])
@pytest.mark.parametrize("spatial", [(5,), (4, 5), (2, 3, 4)], ids=str)
def test_weights_equal_torch(spatial, recurrence):
    query, key, *_ = make(spatial)
    position = tuple(size - 1 for size in spatial)
    options = {"recurrence": recurrence, "channel_axis": -1}
    got = criss_cross_weights(jnp.asarray(query), jnp.asarray(key), position, **options)
    want = criss_cross_weights(torch.from_numpy(query), torch.from_numpy(key), position, **options)
    assert np.abs(np.asarray(got) - want.numpy()).max() < 1e-12


def test_empty_batch():
    arrays = [jnp.asarray(array) for array in make((4, 5), batch=0, dtype=np.float32)]
    out, backward = jax.vjp(partial(criss_cross_residual, channel_axis=-1), *arrays)
    assert out.shape == (0, 4, 5, 5)
    assert backward(out)[4] == 0


def test_bad_input_is_rejected():
    query, key, value = (jnp.moveaxis(array, -1, 1) for array in make((4, 5), dtype=np.float32)[:3])
    with pytest.raises(ValueError, match="query and key must have the same shape"):
        jax.jit(criss_cross_attention)(query, key[:, 1:], value)
    with pytest.raises(ValueError, match="value float64: cast them"):
        criss_cross_attention(query, key, value.astype(jnp.float64))
    with pytest.raises(ValueError, match=r"and torch\.Tensor: pass only torch tensors or only jax arrays"):
        criss_cross_attention(query, torch.zeros(query.shape), value)
    with pytest.raises(ValueError, match="kernels support float16, bfloat16, float32, not float64"):
        criss_cross_attention(*(array.astype(jnp.float64) for array in (query, key, value)), backend="triton")
    with pytest.raises(ValueError, match="lowered for a platform other than CUDA"):
        jax.jit(partial(criss_cross_attention, backend="triton"))(query, key, value)


def test_on_amd_gpus_jax_uses_the_reference_and_says_so(caplog):
    arrays = [jnp.ones((1, 4, 5, 6), jnp.float32)] * 3
    fallback.warn_once.cache_clear()
    traced = jax.jit(criss_cross_attention).trace(*arrays)
    assert "triton_kernel" not in traced.lower(lowering_platforms=("rocm",)).as_text()
    assert "with JAX, the kernels run on NVIDIA GPUs only" in caplog.text
    with pytest.raises(ValueError, match="lowered for a platform other than CUDA"):
        jax.jit(partial(criss_cross_attention, backend="triton")).trace(*arrays).lower(lowering_platforms=("rocm",))


def test_second_derivatives_are_rejected_except_by_the_reference():
    arrays = [jnp.moveaxis(array, -1, 1) for array in make((3, 4), dtype=np.float32)[:3]]

    def twice(backend):
        def slope(value):
            return jax.grad(lambda q: criss_cross_attention(q, *arrays[1:2], value, backend=backend).sum())(arrays[0])

        return jax.grad(lambda value: slope(value).sum())(arrays[2])

    with pytest.raises(ValueError, match="differentiated once: for higher derivatives use backend='reference'"):
        twice("auto")
    assert jnp.isfinite(twice("reference")).all()


# ---- the kernels, bound as on a GPU and run in Triton's interpreter


@pytest.fixture
def interpreted(monkeypatch):
    """Replace XLA on the CPU: allocate and alias buffers, and order the pointers."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if not triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET=1 was not set before triton was imported")
    from ccnet.kernels.backward import line_backward_kernel
    from ccnet.kernels.forward import line_forward_kernel
    from ccnet.kernels.jax_ops import binding, lowering, passes, primitives

    for kernel in (line_forward_kernel, line_backward_kernel):
        monkeypatch.setattr(kernel, "do_not_specialize", kernel.kwargs["do_not_specialize"], raising=False)
    monkeypatch.setattr(binding, "_call", lambda *launch: SimpleNamespace(launch=launch))
    monkeypatch.setattr(binding.lax, "empty", lambda shape, dtype: jnp.full(shape, jnp.nan, dtype))
    monkeypatch.setattr(binding.jax.ffi, "ffi_call", _call_in_the_interpreter)
    monkeypatch.setattr(lowering, "_obstacle", lambda: None)
    monkeypatch.setattr(primitives.forward_p, "impl", lowering.forward_on_cuda)
    monkeypatch.setattr(primitives.backward_p, "impl", lowering.backward_on_cuda)
    name = passes.device().name
    pinned = tiles.load_table(name)
    yield partial(plan.use_table, name)
    plan.use_table(name, pinned)


def _call_in_the_interpreter(target, results, *, input_output_aliases):
    def run(*operands, opaque):
        kernel, parameters, constants, grid, *_ = opaque.launch
        memory = [torch.from_numpy(np.array(operand)) for operand in operands]
        shared = {result: memory[operand] for operand, result in input_output_aliases.items()}
        made = []
        for index, result in enumerate(results):
            fresh = torch.from_numpy(np.full(result.shape, np.nan, result.dtype))
            made.append(shared.get(index, fresh))
            assert made[-1].shape == fresh.shape and made[-1].dtype == fresh.dtype
        buffers = iter([*memory, *made])
        arguments = {name: next(buffers) if kind.startswith("*") else value for name, (kind, _, value) in parameters}
        for (_, (kind, _, _)), tensor in zip(parameters, arguments.values(), strict=True):
            assert not kind.startswith("*") or kind[1:] == {"float32": "fp32", "float16": "fp16"}[str(tensor.dtype)[6:]]
        kernel[(grid,)](**arguments, **dict(constants))
        left = [tensor.data_ptr() for tensor in buffers]
        assert set(left) <= {tensor.data_ptr() for tensor in memory}  # the rest share an operand's pointer
        return [jnp.asarray(tensor.numpy()) for tensor in made]

    return run


BOUND = [
    ((5,), (0,), np.float32),
    ((5, 6), (0, 1), np.float32),
    ((5, 6), (0,), np.float16),
    ((5, 6), (0, 1), np.float16),
    ((2, 3, 4), (0, 1, 2), np.float16),
    ((130,), (0,), np.float16),
]
MANY_TILES = [((2, 20), (0, 1), np.float16), ((2, 40), (0, 1), np.float32)]  # seconds each


@pytest.mark.parametrize(
    ("function", "spatial", "axes", "dtype"),
    [(function, *case) for case in BOUND for function in OPERATORS]
    + [(criss_cross_residual, *case) for case in MANY_TILES],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_launches_are_bound_as_the_kernels_expect(interpreted, function, spatial, axes, dtype):
    """Every pointer, partial sum and aliased buffer is bound, for one and several passes, for one and several tiles."""
    if spatial == (2, 20):  # several passes over several tiles, instead of the pinned table
        tile = {"block_m": 16, "block_n": 16, "block_c": 16, "num_warps": 4, "num_stages": 2}
        row = {"dtype": "float16", "min_length": 1, "max_length": 99, "max_query_channels": 64, "tile": tile}
        interpreted([row | {"kernel": kernel} for kernel in ("forward", "backward")])
    arrays = used(function, make(spatial, batch=1, d=8, c=20, dtype=dtype))
    upstream = make(spatial, batch=1, c=20, dtype=dtype, seed=1)[2]
    options = {"axes": axes, "channel_axis": -1}
    got = jax_result(function, arrays, upstream, jit=False, **options)
    if function is criss_cross_residual:  # without gradients, the attention's output is not kept
        got.append(np.asarray(function(*map(jnp.asarray, arrays), **options)))
    want = torch_result(function, *(([a.astype(np.float64) for a in arrays]), upstream.astype(np.float64)), **options)
    tolerance = 2e-6 if dtype is np.float32 else 4e-3
    for ours, oracle in itertools.zip_longest(got, want, fillvalue=want[0]):
        assert np.abs(ours - oracle).max() < tolerance * max(np.abs(oracle).max(), 1)


# ---- lowering for CUDA, in a process where Triton compiles

LOWER = """
import jax, jax.numpy as jnp
from ccnet.kernels import criss_cross_residual

image = lambda channels: jax.ShapeDtypeStruct((2, 9, 97, channels), jnp.bfloat16)
arrays = [*map(image, (16, 16, 64, 64)), jax.ShapeDtypeStruct((1,), jnp.float32)]
attend = lambda *arrays: criss_cross_residual(*arrays, channel_axis=-1)
gradient = jax.grad(lambda *arrays: attend(*arrays).astype(jnp.float32).sum(), (0, 1, 2, 3, 4))
for function in (attend, gradient):
    traced = jax.jit(function).trace(*arrays)
    for platforms in (("cuda",), ("cpu",), ("cpu", "cuda")):
        text = traced.lower(lowering_platforms=platforms).as_text()
        print(text.count("@triton_kernel_call_ffi("), "transpose" in text)
"""


@pytest.fixture(scope="module")
def plugin():
    pytest.importorskip("triton", reason="triton is not installed")
    from jax._src.lib import gpu_triton

    if not hasattr(gpu_triton, "TritonKernel"):
        name = f"jax-cuda13-plugin=={version('jax')}"
        pytest.skip(f"JAX's CUDA plugin is not installed: pip install --no-deps {name}")


def test_lowering_for_cuda_on_a_machine_without_one(plugin):
    """Two launches forward, two backward, no copies of channels-last arrays; on the CPU, no launches."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, "-c", LOWER], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    forward, backward = ["2 False", "0 True", "2 True"], ["4 False", "0 True", "4 True"]
    assert done.stdout.splitlines() == forward + backward


EVERY_TARGET = """
from ccnet.kernels import plan
from ccnet.kernels.launches.compiled import compile_case
from ccnet.kernels.launches.launch_cases import for_jax, forward_cases

problem = plan.Problem(1, (5,), (0,), 16, 16, "bfloat16")
for capability in (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1):
    device = plan.Device("", capability, 100, 0)
    for case in forward_cases(problem, device):
        compile_case(for_jax(case, capability), device)
        print(*capability)
"""


def test_jaxs_ptx_compiles_for_every_gpu():
    """LLVM ends the process if a PTX version is too old for its target."""
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", EVERY_TARGET], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {"8 0", "8 6", "8 9", "9 0", "10 0", "10 3", "12 0", "12 1"}


def test_the_target_of_a_machine_without_a_gpu(monkeypatch, caplog):
    from ccnet.kernels import set_jax_target
    from ccnet.kernels.jax_ops import targets

    monkeypatch.setattr(targets, "_first_gpu", lambda: None)
    targets._warn_of_default.cache_clear()
    assert targets.device().capability == (9, 0)
    assert "has no GPU, so criss-cross attention is lowered for sm_90" in caplog.text
    monkeypatch.setenv("CCNET_JAX_TARGET", "sm_121")
    assert targets.device().capability == (12, 1)
    set_jax_target("sm_86")
    assert targets.device().capability == (8, 6)
    set_jax_target(None)
    monkeypatch.delenv("CCNET_JAX_TARGET")
    gpus = [
        SimpleNamespace(platform="gpu", compute_capability=version, device_kind=kind, core_count=108)
        for version, kind in (("8.0", "NVIDIA A100"), ("10.0", "NVIDIA B200"))
    ]
    monkeypatch.setattr(targets, "_properties", targets._properties.__wrapped__)
    for gpu in gpus:  # two GPUs in one machine: a program is lowered for the one that runs it
        with targets.running_on(gpu):
            assert targets.device().name == gpu.device_kind
    with pytest.raises(ValueError, match="target 'sm_91' is unknown: choose one of sm_80, sm_86"):
        set_jax_target("sm_91")


@pytest.mark.parametrize("absent", ["jax", "torch"])
def test_either_framework_alone_is_sufficient(absent):
    """The operator and the losses work if the other framework cannot be imported."""
    present = {"jax": "torch.ones", "torch": "jnp.ones"}[absent]
    module = "import torch" if absent == "jax" else "import jax.numpy as jnp"
    code = f"""
import sys
sys.modules["{absent}"] = None
from ccnet import kernels, losses
{module}
x = {present}((1, 4, 5, 6))
print(tuple(kernels.criss_cross_attention(x, x, x).shape), losses.cross_entropy(x, ({present}((1, 5, 6)) > 0) * 1))
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(1, 4, 5, 6) ")


# ---- JAX's own switches


def test_the_operator_works_under_jaxs_switches():
    arrays = [jnp.asarray(array) for array in make((3, 4), dtype=np.float32)]
    attend = partial(criss_cross_residual, channel_axis=-1)
    half = [*(array.astype(jnp.bfloat16) for array in arrays[:3]), *arrays[3:]]  # the residual and gamma are float32
    want = [jax.grad(lambda *arrays: attend(*arrays).sum(), range(5))(*case) for case in (arrays, half)]
    for switch in (
        jax.disable_jit(),
        jax.debug_nans(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.checking_leaks(),
    ):
        with switch:
            for case, expected in zip((arrays, half), want, strict=True):
                got = jax.grad(lambda *arrays: attend(*arrays).sum(), range(5))(*case)
                agree([a.astype(jnp.float32) for a in got], [b.astype(jnp.float32) for b in expected], 2e-2)


def test_check_grads_passes_numpy_arrays():
    from jax.test_util import check_grads

    check_grads(partial(criss_cross_residual, channel_axis=-1), tuple(make((3, 4))), order=1, modes=["rev"])


def test_a_learned_scale_and_an_empty_vmap():
    query, key, value = (jnp.asarray(array) for array in make((3, 4), dtype=np.float32)[:3])
    attend = partial(criss_cross_attention, channel_axis=-1)
    slope = jax.jit(jax.grad(lambda scale: attend(query, key, value, scale=scale).sum()))(jnp.float32(0.7))
    reference = jax.grad(lambda factor: attend(factor * query, key, value).sum())(0.7)
    assert float(slope) == pytest.approx(float(reference), rel=1e-3, abs=1e-4)
    nothing = [jnp.zeros((0, *array.shape), array.dtype) for array in (query, key, value)]
    assert jax.vmap(attend)(*nothing).shape[0] == 0


def test_unsupported_calls_are_explained():
    query, key, value, residual, gamma = (jnp.asarray(array) for array in make((3, 4), dtype=np.float32))
    attend = partial(criss_cross_residual, channel_axis=-1)
    with pytest.raises(TypeError, match=r"no forward-mode derivative .*use backend='reference'"):
        jax.jvp(lambda query: attend(query, key, value, residual, gamma), (query,), (query,))
    with pytest.raises(ValueError, match="residual must have a floating-point dtype, got int32"):
        attend(query, key, value, residual.astype(jnp.int32), gamma)
    with pytest.raises(ValueError, match="gamma must have a floating-point dtype, got int32"):
        attend(query, key, value, residual, gamma.astype(jnp.int32))
    with pytest.raises(ValueError, match="pass channel_axis=-1 if channels are in that position"):
        criss_cross_attention(query, key, value)
