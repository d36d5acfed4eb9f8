"""The kernels under JAX: how launches are bound, lowered and compiled, and for which GPU."""

import itertools
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_python
from jax_calls import OPERATORS, jax_result, make, torch_result, used

from ccnet.kernels import criss_cross_attention, criss_cross_residual, fallback
from ccnet.kernels.launches import plan, tile_tables

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
import jax.numpy as jnp  # noqa: E402

pytestmark = pytest.mark.usefixtures("jax_float64")


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
    monkeypatch.setattr(binding.lax, "empty", lambda shape, dtype: jax.device_put(np.full(shape, np.nan, dtype)))
    monkeypatch.setattr(binding.jax.ffi, "ffi_call", _call_in_the_interpreter)
    monkeypatch.setattr(lowering, "_obstacle", lambda: None)
    monkeypatch.setattr(primitives.forward_p, "impl", lowering.forward_on_cuda)
    monkeypatch.setattr(primitives.backward_p, "impl", lowering.backward_on_cuda)
    name = passes.device().name
    pinned = tile_tables.load_table(name)
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
            assert not kind.startswith("*") or kind[1:] == {2: "fp16", 4: "fp32", 8: "fp64"}[tensor.itemsize]
        kernel[(grid,)](**arguments, **dict(constants))
        left = [tensor.data_ptr() for tensor in buffers]
        assert set(left) <= {tensor.data_ptr() for tensor in memory}  # the rest share an operand's pointer
        return [jax.device_put(tensor.numpy().copy()) for tensor in made]

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


@pytest.mark.slow
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
    got += (np.asarray(function(*jax.device_put(arrays), **options)),)  # without a derivative
    want = torch_result(function, *(([a.astype(np.float64) for a in arrays]), upstream.astype(np.float64)), **options)
    tolerance = 2e-6 if dtype is np.float32 else 4e-3
    for ours, oracle in itertools.zip_longest(got, want, fillvalue=want[0]):
        assert np.abs(ours - oracle).max() < tolerance * max(np.abs(oracle).max(), 1)


def test_residual_and_gamma_may_be_float64(interpreted):
    arrays = make((5, 6), batch=1, d=8, c=20)
    upstream = make((5, 6), batch=1, c=20, seed=1)[2]
    mixed = [*(array.astype(np.float32) for array in arrays[:3]), *arrays[3:]]
    got = jax_result(criss_cross_residual, mixed, upstream, jit=False, channel_axis=-1)
    want = torch_result(criss_cross_residual, arrays, upstream, channel_axis=-1)
    for ours, oracle in zip(got, want, strict=True):
        assert np.abs(ours - oracle).max() < 2e-6 * max(np.abs(oracle).max(), 1)


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
    forward, backward = ["2 False", "0 True", "2 True"], ["4 False", "0 True", "4 True"]
    assert run_python("-c", LOWER, TRITON_INTERPRET=None).splitlines() == forward + backward


def test_without_its_cuda_plugin_jax_cannot_launch_the_kernels(monkeypatch):
    triton = pytest.importorskip("triton", reason="triton is not installed")
    from jax._src.lib import gpu_triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.delattr(gpu_triton, "TritonKernel", raising=False)
    traced = jax.jit(partial(criss_cross_attention, backend="triton")).trace(*[jnp.ones((1, 4, 5, 6), jnp.float32)] * 3)
    advice = r"plugin, .*, is missing: install jax\[cuda12\] or jax\[cuda13\]; use backend='reference'$"
    with pytest.raises(ValueError, match=advice):
        traced.lower(lowering_platforms=("cuda",))


def test_in_interpreter_mode_jax_cannot_launch_the_kernels(monkeypatch):
    triton = pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    traced = jax.jit(partial(criss_cross_attention, backend="triton")).trace(*[jnp.ones((1, 4, 5, 6), jnp.float32)] * 3)
    with pytest.raises(ValueError, match=r"Triton is in interpreter mode \(TRITON_INTERPRET=1\); use backend='ref"):
        traced.lower(lowering_platforms=("cuda",))


EVERY_TARGET = """
from ccnet.kernels.launches import plan
from ccnet.kernels.launches.compiled import compile_case
from ccnet.kernels.launches.launch_cases import for_jax, forward_cases

problem = plan.Problem(1, (5,), (0,), 16, 16, "bfloat16")
for capability in (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1):
    device = plan.Device("", capability, 100, 0)
    for case in forward_cases(problem, device):
        compile_case(for_jax(case, capability), device)
        print(*capability)
"""


@pytest.mark.slow
def test_jaxs_ptx_compiles_for_every_gpu():
    """LLVM ends the process if a PTX version is too old for its target."""
    pytest.importorskip("triton", reason="triton is not installed")
    compiled = run_python("-c", EVERY_TARGET, TRITON_INTERPRET=None).splitlines()
    assert set(compiled) == {"8 0", "8 6", "8 9", "9 0", "10 0", "10 3", "12 0", "12 1"}


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
    with pytest.raises(
        ValueError, match=r"target 'sm_91' \(set_jax_target, CCNET_JAX_TARGET\) is unknown: choose sm_80, "
    ):
        set_jax_target("sm_91")


def test_on_amd_gpus_jax_uses_the_reference_and_says_so(caplog):
    arrays = [jnp.ones((1, 4, 5, 6), jnp.float32)] * 3
    fallback.warn_once.cache_clear()
    traced = jax.jit(criss_cross_attention).trace(*arrays)
    assert "triton_kernel" not in traced.lower(lowering_platforms=("rocm",)).as_text()
    assert "with JAX, the kernels run on NVIDIA GPUs only" in caplog.text
    with pytest.raises(ValueError, match="lowered for a platform other than CUDA"):
        jax.jit(partial(criss_cross_attention, backend="triton")).trace(*arrays).lower(lowering_platforms=("rocm",))
