"""Without a GPU, every shipped configuration compiles for its GPUs, without spills and within shared memory.

The compiler runs in separate processes, because Triton may be in interpreter mode in this one.
"""

import importlib.util
import multiprocessing
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import pytest
import stub_driver
import yaml
from conftest import ROOT

from ccnet.kernels.launches import launch_cases, launch_set, plan

pytestmark = pytest.mark.slow


# Triton is not imported here: this process may import it later, in interpreter mode.
if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def compilers():
    context = multiprocessing.get_context("spawn")
    # The functions below are unpickled with this module, whose imports select the interpreter.
    with ProcessPoolExecutor(2, mp_context=context, initializer=stub_driver.leave_interpreter) as pool:
        yield pool


def is_hardest(case):
    """Return whether this is the last of two passes, with a residual, without gamma; at 97 with gamma, or the first.

    Backward passes write the gradients into one array, as in training.
    """
    constants = case.launch.constants
    if case.ptx_version is not None or (constants["PRECISION"] == "ieee" and not is_common_on_amd(case)):
        return False
    if case.kernel == "forward":
        fused = constants["HAS_RESIDUAL"] and constants["HAS_PREVIOUS"] and constants["SAVE_OUT"]
        return fused and constants["REVERSED"] and case.pointers["residual_ptr"] == case.pointers["value_ptr"]
    if not constants["JOINED"] or constants["FIRST"] == constants["LAST"] or constants["LAST"] != constants["REVERSED"]:
        return False
    if case.launch.length == 97:
        return constants["LAST"] or not constants["HAS_GAMMA"]
    return constants["LAST"] and not constants["HAS_GAMMA"]


def is_common_on_amd(case):
    """Return whether lines of 97 or 200, in arrays of up to 2 GB: one tile, or several in the backward pass."""
    return case.small and case.launch.constants["D"] == 64 and case.launch.length in (97, 200)


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90", "sm_100", "gfx942", "gfx950"])
def test_no_spills_within_shared_memory_on_tensor_cores(gpu, compilers):
    """A selection for the installed Triton. ``make compile-all`` compiles all launches with every supported version."""
    jobs = [(case, compilers.submit(launch_set.fault, gpu, case)) for case in launch_set.cases(gpu) if is_hardest(case)]
    assert [(found.result(), case) for case, found in jobs if found.result() is not None] == []


@pytest.mark.parametrize("gpu", ["sm_86", "sm_120"])
def test_launches_fit_the_99_kb_of_shared_memory_of_geforce_gpus(gpu, compilers):
    """Training in float16 with a residual in float32 needs the most: slabs of the output are in float32, too."""
    cases = []
    for length in (97, 129):
        problem = plan.Problem(8, (length, length), (0, 1), 64, 512, "float16")
        cases.append(launch_cases.forward_cases(problem, launch_set.GPUS[gpu], "float32")[-1])
        cases.append(launch_cases.backward_cases(problem, launch_set.GPUS[gpu], has_gamma=True, joined=True)[0])
    jobs = [compilers.submit(launch_set.fault, gpu, case) for case in cases]
    assert [job.result() for job in jobs] == [None] * 4


@pytest.mark.parametrize(("gpu", "joined", "index"), [("sm_80", True, 1), ("sm_100", False, 0)])
def test_short_lines_with_128_query_channels_spill_nothing(compilers, gpu, joined, index):
    problem = plan.Problem(8, (64, 64), (0, 1), 128, 512, "bfloat16")
    case = launch_cases.backward_cases(problem, launch_set.GPUS[gpu], has_gamma=True, joined=joined)[index]
    assert compilers.submit(launch_set.fault, gpu, case).result() is None


@pytest.mark.parametrize(
    ("gpu", "dtype", "change", "warps"),
    [("sm_80", "float32", {"BLOCK_M": 32}, 2), ("gfx942", "bfloat16", {"BLOCK_C": 64}, 8)],
)
def test_a_spill_is_a_fault(compilers, gpu, dtype, change, warps):
    """Larger tiles, or warps that share the registers with more others, need more registers than there are."""
    problem = plan.Problem(8, (97, 97), (0, 1), 128, 512, dtype)
    case = launch_cases.backward_cases(problem, launch_set.GPUS[gpu], has_gamma=True)[-1]
    tile = case.launch.tile._replace(num_warps=warps)
    launch = case.launch._replace(constants=case.launch.constants | change, tile=tile)
    assert "spilled" in compilers.submit(launch_set.fault, gpu, case._replace(launch=launch)).result()


def test_a_compiler_error_without_a_message_is_a_fault(monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # restored afterwards
    monkeypatch.setitem(sys.modules, "ccnet.kernels.launches.compiled", SimpleNamespace(compile_case=fail))
    assert launch_set.fault("sm_90", launch_set.cases("sm_90")[0]) == "does not compile: AssertionError: "


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90", "sm_100"])
def test_a_backward_loop_that_waits_for_its_last_copy_is_a_fault(gpu, compilers):
    """Two stages wait for the copies that were issued last (cp.async.wait_group 0), three for earlier ones."""
    problem = plan.Problem(8, (97, 97), (0, 1), 64, 512, "bfloat16")
    case = launch_cases.backward_cases(problem, launch_set.GPUS[gpu])[-1]
    # The kernel names its loop's stages itself; a third for the compiler keeps the fault from excusing them.
    two_stages = case._replace(launch=case.launch._replace(constants=case.launch.constants | {"STAGES": 2}))
    three, two = (compilers.submit(launch_set.fault, gpu, each) for each in (case, two_stages))
    assert three.result() is None
    assert "waits for its last copy: (0" in two.result()


def test_every_supported_triton_version_is_covered():
    """The Makefile, CI and the README name the same minor versions."""
    minors = re.search(r"^TRITON := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert workflow["jobs"]["compile"]["strategy"]["matrix"] == {"triton": minors}
    assert f"Triton {', '.join(minors[:-1])} and {minors[-1]}" in " ".join((ROOT / "README.md").read_text().split())


def launched_arguments():
    """Return the launches that reach the driver, which is replaced by a recorder.

    The calls: the same twice, other strides, the first one again, float32.
    """
    launches = stub_driver.activate()
    import torch

    from ccnet.kernels.torch_ops import launch, passes

    array = torch.randn(1, 4, 5, 200).bfloat16()
    query, key, value = array[..., :16], array[..., 16:32], array[..., 32:72]
    out, stats = torch.empty(1, 4, 5, 40).bfloat16(), torch.empty(1, 4, 5, 2)
    device = passes.device_of(None)
    plans = {
        dtype: plan.forward_launches(plan.Problem(1, (4, 5), (1,), 16, 40, dtype), device)
        for dtype in ("bfloat16", "float32")
    }
    calls = [("bfloat16", query), ("bfloat16", query), ("bfloat16", query.contiguous()), ("bfloat16", query)]
    for dtype, query_now in [*calls, ("float32", query)]:
        arrays = [query_now, key, value, out, stats, None, None, None, None]
        if dtype == "float32":
            arrays = [array.to(torch.float32) if array is not None else None for array in arrays]
        strides = [array.stride(2) for array in arrays[:3]]
        launch.run(passes.line_forward_kernel, plans[dtype][0], arrays, (*strides, 0), 1.0, (None,) * 4)
    return launches


def test_a_cached_kernel_is_launched_as_by_triton(compilers):
    """The second call skips Triton's lookup and launches the same kernel with the same arguments."""
    first, second, packed, third, wide = compilers.submit(launched_arguments).result()
    assert first == second == third
    assert packed[1] != first[1]
    assert len({first[0], packed[0], wide[0]}) >= 2
    assert wide[0] != first[0]


def cache_keys():
    """Return the hashes of a call's launches in Triton's cache: compiled without a GPU, and as they are launched."""
    launches = stub_driver.activate()
    import torch
    import triton

    from ccnet.kernels.call import Call, Options
    from ccnet.kernels.launches import compiled
    from ccnet.kernels.torch_ops import passes

    device = launch_set.GPUS["sm_90"]
    calls = [((9, 8), (1,), 40), ((80, 3), (0, 1), 64)]  # through pointers; through tensor descriptors and overlapping
    cases = []
    for spatial, axes, c in calls:
        problem = plan.Problem(1, spatial, axes, 16, c, "bfloat16", aligned=True)
        cases += launch_cases.forward_cases(problem, device, "bfloat16")
        cases += launch_cases.backward_cases(problem, device, has_gamma=True, joined=True)
    ahead, compile_source = [], triton.compile

    def compile_and_note(*args, **kwargs):
        made = compile_source(*args, **kwargs)
        ahead.append(made.hash)
        return made

    triton.compile = compile_and_note
    for case in cases:
        compiled.compile_case(case, device)

    passes.device_of = lambda _: device
    for spatial, axes, c in calls:
        # Slices of arrays whose pixels are multiples of 16 elements apart, as compiled ahead.
        arrays = [torch.randn(1, *spatial, width // 16 * 16 + 16).bfloat16() for width in (32 + c, c, c)]
        query, key, value = arrays[0][..., : 32 + c].split([16, 16, c], dim=-1)
        residual, grad = (array[..., :c] for array in arrays[1:])
        call = Call(query, key, value, Options(axes, 1.0, "tf32x3", -1, "triton"), residual, torch.ones(1))
        out, stats = passes.forward(call, torch.empty(1, *spatial, c).bfloat16(), save_out=True)
        gradients = torch.empty(1, *spatial, 32 + c).bfloat16().split([16, 16, c], dim=-1)
        passes.backward(call, out, stats, grad, gradients)
    return ahead, [kernel for kernel, _ in launches]


def test_a_launch_finds_what_was_compiled_ahead(compilers):
    """Tuning and `mode=compile` compile in other processes: Triton's cache must take both for the same kernel."""
    ahead, launched = compilers.submit(cache_keys).result()
    assert len(ahead) == 6
    assert ahead == launched
