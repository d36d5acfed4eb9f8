"""The cases that are compiled are the launches that torch and JAX make: same constants, pointers and dtypes."""

from functools import partial
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
import torch

from ccnet.kernels.call import Call, Options
from ccnet.kernels.launches import launch_cases, plan, tile_tables

pytest.importorskip("triton", reason="triton is not installed")
from ccnet.kernels.jax_ops import binding, targets
from ccnet.kernels.jax_ops import passes as jax_passes
from ccnet.kernels.launches import compiled
from ccnet.kernels.torch_ops import launch as torch_launch
from ccnet.kernels.torch_ops import passes as torch_passes

# (spatial, axes): one axis or two, one tile, several, or both; tensor descriptors; a pass between.
SPACES = [((5,), (0,)), ((130,), (0,)), ((5, 6), (0, 1)), ((3, 130), (0, 1)), ((2, 80), (0, 1)), ((2, 3, 4), (0, 1, 2))]
# (residual, save_out) of the forward pass.
KINDS = [(None, True), ("float16", True), ("float16", False), ("float32", True), ("float32", False)]


def call_of(make, spatial, axes, dtype, residual):
    """Return a call on arrays that ``make`` makes of a shape and the name of a dtype."""
    options = Options(axes, 1.0, "tf32x3", -1, "triton")
    query, key, value = (make((2, *spatial, channels), dtype) for channels in (8, 8, 32))
    if residual is None:
        return Call(query, key, value, options, None, None)
    return Call(query, key, value, options, make((2, *spatial, 32), residual), make((1,), "float32"))


def problem_of(spatial, axes, dtype, aligned=False):
    return plan.Problem(2, spatial, axes, 8, 32, dtype, widest_stride=32, aligned=aligned)


def expected(cases):
    return [(case.launch.constants, case.pointers, case.descriptors) for case in cases]


@pytest.fixture
def torch_launches(monkeypatch):
    """Return the list to which each launch of torch's passes adds its constants, pointers' dtypes and descriptors."""
    made = []

    def record(kernel, launch, arrays, strides, scale, descriptors=()):
        names = [name for name in kernel.arg_names if name.endswith("_ptr")]
        dtypes = [None if array is None else str(array.dtype)[6:] for array in arrays]
        described = [d and (str(d.base.dtype)[6:], tuple(d.block_shape)) for d in descriptors]
        desc_names = [name for name in kernel.arg_names if name.endswith("_desc")]
        pointers, blocks = dict(zip(names, dtypes, strict=True)), dict(zip(desc_names, described, strict=True))
        made.append((launch.constants, pointers, blocks))

    monkeypatch.setattr(torch_launch, "run", record)
    return made


@pytest.fixture
def jax_launches(monkeypatch):
    """Return the list to which each launch of JAX's passes adds its constants, pointers' dtypes and descriptors."""
    made = []

    def record(kernel, planned, arguments, capability):
        pointers = {name: value for name, value in arguments.items() if name.endswith("_ptr")}
        arrays = {name: getattr(value, "array", value) for name, value in pointers.items()}
        dtypes = {name: None if array is None else jnp.dtype(array.dtype).name for name, array in arrays.items()}
        blocks = {name: value for name, value in arguments.items() if name.endswith("_desc")}
        made.append((planned.constants, dtypes, blocks))
        results = {name for name, value in pointers.items() if isinstance(value, binding.Updated | binding.Written)}
        return {name: jnp.zeros(arrays[name].shape, arrays[name].dtype) for name in results}

    monkeypatch.setattr(jax_passes, "launch", record)
    return made


def torch_array(shape, dtype):
    return torch.zeros(shape, dtype=getattr(torch, dtype))


@pytest.mark.parametrize(("spatial", "axes"), SPACES, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("residual", "save_out"), KINDS)
def test_forward(torch_launches, jax_launches, spatial, axes, dtype, residual, save_out):
    residual = dtype if residual == "float16" else residual
    call = call_of(torch_array, spatial, axes, dtype, residual)
    torch_passes.forward(call, None if residual is None else torch.zeros_like(call.residual), save_out)
    problem = problem_of(spatial, axes, dtype, aligned=True)
    assert torch_launches == expected(
        launch_cases.forward_cases(problem, torch_passes.device_of(None), residual, save_out)
    )
    jax_passes.forward(call_of(jnp.zeros, spatial, axes, dtype, residual), save_out)
    assert jax_launches == expected(launch_cases.forward_cases(problem, jax_passes.device(), residual, save_out))


def inputs_of(make, spatial, axes, dtype, residual):
    """Return a call and the arrays of its backward pass."""
    out = make((2, *spatial, 32), plan.kept_dtype(dtype))
    call = call_of(make, spatial, axes, dtype, residual)
    return call, out, make((2, *spatial, 2), "float32"), make((2, *spatial, 32), dtype)


@pytest.mark.parametrize(("spatial", "axes"), SPACES, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("has_gamma", [True, False])
def test_backward(torch_launches, jax_launches, spatial, axes, dtype, has_gamma):
    problem = problem_of(spatial, axes, dtype)
    inputs = partial(inputs_of, spatial=spatial, axes=axes, dtype=dtype, residual=dtype if has_gamma else None)
    for joined in (False, True):
        gradients = [torch_array((2, *spatial, width), dtype) for width in (8, 8, 32)]
        if joined:
            gradients = torch.cat(gradients, dim=-1).split([8, 8, 32], dim=-1)
        torch_passes.backward(*inputs(torch_array), gradients)
        device = torch_passes.device_of(None)
        assert torch_launches == expected(launch_cases.backward_cases(problem, device, has_gamma, joined))
        torch_launches.clear()
    jax_passes.backward(*inputs(jnp.zeros))
    assert jax_launches == expected(launch_cases.backward_cases(problem, jax_passes.device(), has_gamma))


@pytest.mark.parametrize("spatial", [(20,), (2, 20)], ids=str)
def test_backward_with_a_single_tile_of_keys_but_several_of_queries(jax_launches, spatial):
    """The rule never chooses such a tile, but a table may. The partial sums of dkey and dvalue still need arrays."""
    axes, device = tuple(range(len(spatial))), jax_passes.device()
    pinned = tile_tables.load_table(device.name)
    row = {"kernel": "backward", "dtype": "float16", "min_length": 1, "max_length": 99, "max_query_channels": 64}
    plan.use_table(device.name, [row | {"tile": plan.Tile(16, 32, 16, 4, 2)._asdict()}])
    try:
        jax_passes.backward(*inputs_of(jnp.zeros, spatial, axes, "float16", None))
        assert jax_launches == expected(launch_cases.backward_cases(problem_of(spatial, axes, "float16"), device))
    finally:
        plan.use_table(device.name, pinned)


def test_offsets_in_joined_gradients_are_wide_too(torch_launches, monkeypatch):
    """They have a larger stride than dense inputs: 64-bit offsets must not depend on the latter only."""
    planned = []
    monkeypatch.setattr(plan, "backward_launches", lambda problem, *_, **__: planned.append(problem) or ())
    monkeypatch.setattr(plan, "backward_partials", lambda launches: (False, False, False))
    call = call_of(torch_array, (5, 6), (0, 1), "float16", None)
    gradients = torch_array((2, 5, 6, 8 + 8 + 32), "float16").split([8, 8, 32], dim=-1)
    out, grad = torch_array((2, 5, 6, 32), "float32"), torch_array((2, 5, 6, 32), "float16")
    torch_passes.backward(call, out, torch_array((2, 5, 6, 2), "float32"), grad, gradients)
    assert [problem.widest_stride for problem in planned] == [48]


def test_jax_has_neither_descriptors_nor_overlap():
    """Its Triton call can pass neither, even on a Hopper GPU."""
    gpu = SimpleNamespace(platform="gpu", compute_capability="9.0", device_kind="NVIDIA H100", core_count=132)
    device = targets._properties.__wrapped__(gpu)
    problem = plan.Problem(8, (97, 97), (0, 1), 64, 512, "bfloat16", aligned=True)
    for launch in (*plan.forward_launches(problem, device), *plan.backward_launches(problem, device)):
        assert not launch.tile.descriptors and not launch.constants["WAITS"] and not launch.constants["SIGNALS"]


# The PTX versions with which NVIDIA introduced the targets.
FIRST_PTX = {"sm_80": 70, "sm_86": 71, "sm_87": 74, "sm_89": 78, "sm_90": 78, "sm_100": 86, "sm_103": 88, "sm_120": 87,
             "sm_121": 88}  # fmt: skip


def test_every_target_of_jax_has_a_ptx_version():
    """It knows the GPU, and is no newer than the ptxas of CUDA 12.6 reads, or for Blackwell that of CUDA 12.9."""
    assert set(FIRST_PTX) == set(targets._PROCESSORS)
    assert len(plan.PTX_VERSIONS) == len(FIRST_PTX)
    for name, first in FIRST_PTX.items():
        capability = targets._target(name).capability
        assert first <= plan.PTX_VERSIONS[capability] == (88 if capability >= (10, 0) else 85)


def test_jax_asks_for_an_older_ptx(monkeypatch):
    """Only the version of PTX differs from what torch compiles."""
    asked = []
    monkeypatch.setattr(binding, "_call", lambda *launch: asked.append(dict(launch[4])))

    def ffi_call(target, results, **_):
        return lambda *_, opaque: [jnp.zeros(result.shape, result.dtype) for result in results]

    monkeypatch.setattr(binding.jax.ffi, "ffi_call", ffi_call)
    monkeypatch.setattr(jax_passes.line_forward_kernel, "do_not_specialize", (), raising=False)
    jax_passes.forward(call_of(jnp.zeros, (5,), (0,), "float32", None), save_out=True)
    device = jax_passes.device()
    (case,) = launch_cases.forward_cases(problem_of((5,), (0,), "float32"), device)
    version = launch_cases.for_jax(case, device.capability).ptx_version
    assert version is not None
    assert asked == [{**case.launch.options, "ptx_version": version}]


@pytest.fixture
def compilations(monkeypatch):
    """Return the lists of what is compiled and of the launches that JAX's library is asked for."""
    compiled_sources, described = [], []
    made = SimpleNamespace(
        metadata=SimpleNamespace(name="line", num_warps=4, shared=1024), asm={"ptx": "the PTX", "cubin": b""}
    )

    def compile_source(source, target, options):
        *others, attributes = source
        compiled_sources.append((*others, {key: value for key, value in attributes.items() if value}, target, options))
        return made

    def serialise(name, metadata):
        assert (name, metadata) == ("line", b"")
        return b""

    def describe(*launch):
        described.append(launch)
        return SimpleNamespace(to_proto=serialise)

    library = SimpleNamespace(
        TritonKernel=lambda *kernel: kernel,
        create_array_parameter=lambda *array: array,
        create_scalar_parameter=lambda *scalar: scalar,
        TritonKernelCall=describe,
    )
    for module in (binding, compiled):
        monkeypatch.setattr(module, "ASTSource", lambda *source: source)
    monkeypatch.setattr(binding.triton, "compile", compile_source)
    monkeypatch.setattr(compiled, "report_on", lambda *_: None)
    monkeypatch.setattr(binding, "triton_library", lambda: library)
    results = lambda _, shapes, **__: lambda *_, opaque: [jnp.zeros(each.shape, each.dtype) for each in shapes]  # noqa: E731
    monkeypatch.setattr(binding.jax.ffi, "ffi_call", results)
    for kernel in compiled.KERNELS.values():
        monkeypatch.setattr(kernel, "do_not_specialize", ("length", "inner"), raising=False)
    binding._call.cache_clear()
    yield compiled_sources, described
    binding._call.cache_clear()


@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_jax_compiles_and_launches_the_cases(compilations, kernel):
    """It gives the compiler the same source as ``compiled.py``: what ``make compile-all`` has compiled is what runs."""
    options = Options((0, 1), 0.5, "tf32x3", -1, "triton")
    query, value, gamma = jnp.zeros((1, 16, 32, 16)), jnp.zeros((1, 16, 32, 48)), jnp.zeros(1)
    call = Call(query, query, value, options, value, gamma)
    problem, device = plan.Problem(1, (16, 32), (0, 1), 16, 48, "float32"), jax_passes.device()
    if kernel == "forward":
        jax_passes.forward(call, save_out=True)
        cases = launch_cases.forward_cases(problem, device, "float32")
    else:
        jax_passes.backward(call, value, jnp.zeros((1, 16, 32, 2)), value)
        cases = launch_cases.backward_cases(problem, device, has_gamma=True)
    sources, launches = compilations
    of_jax = sources.copy()
    sources.clear()
    for case in cases:
        compiled.compile_case(launch_cases.for_jax(case, device.capability), device)
    assert of_jax == sources

    strides = {"query_stride": 16, "key_stride": 16, "value_stride": 48, "residual_stride": 48, "grad_stride": 48}
    assert len(launches) == len(cases)
    for case, source, (binary, *grid, values) in zip(cases, sources, launches, strict=True):
        assert binary == ("line", 4, 1, 1024, "the PTX", "", 90) and grid == [case.launch.grid, 1, 1]
        scalars = strides | {"length": case.launch.length, "inner": case.launch.inner, "scale": 0.5}
        kinds = {name: kind for name, kind in source[1].items() if kind != "constexpr"}
        # No bytes of an array are cleared first, and it starts at a multiple of 16 bytes.
        assert values == [(scalars[name], kind) if name in scalars else (0, 16) for name, kind in kinds.items()]


def test_jax_knows_which_strides_are_multiples_of_16(compilations):
    """Those of 8 query channels are not; the compiler would load beyond them."""
    jax_passes.forward(call_of(jnp.zeros, (16,), (0,), "float32", None), save_out=True)
    ((kernel, signature, _, attributes, *_),) = compilations[0]
    aligned = {kernel.arg_names[index] for (index,) in attributes}
    assert {name for name in aligned if not name.endswith("_ptr")} == {"value_stride", "residual_stride"}
    assert {name for name, kind in signature.items() if kind.startswith("*")} <= aligned
