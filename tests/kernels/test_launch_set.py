"""The launches that are compiled without a GPU, the faults of one, and the command that reports them."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from ccnet.kernels.launches import launch_cases, launch_set, plan

pytest.importorskip("triton", reason="triton is not installed")
from ccnet.kernels.launches.compiled import Report, _stores_early


@pytest.mark.parametrize("unsound", [None, "sm_90"])
def test_every_gpu_is_reported(monkeypatch, capsys, unsound):
    monkeypatch.setattr(launch_set, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))
    monkeypatch.setattr(launch_set, "GPUS", {name: launch_set.GPUS[name] for name in ("sm_80", "sm_90")})
    counts = {gpu: len(launch_set.cases(gpu)) for gpu in launch_set.GPUS}
    hardest = launch_set.cases("sm_90")[-1]
    monkeypatch.setattr(
        launch_set, "fault", lambda gpu, case: "spilled" if gpu == unsound and case == hardest else None
    )
    failed = int(unsound is not None)
    assert launch_set.main() == failed
    *others, total = capsys.readouterr().out.splitlines()
    assert others[0] == f"sm_80: {counts['sm_80']} launches, 0 failed"
    assert others[-1] == f"sm_90: {counts['sm_90']} launches, {failed} failed"
    assert any(line.startswith(f"sm_90 {hardest.kernel}: spilled: ") for line in others) == bool(failed)
    assert f": {sum(counts.values())} launches, {failed} failed, " in total


@pytest.mark.parametrize("gpu", launch_set.GPUS)
def test_every_kind_of_call_is_in_the_set(gpu):
    """Of torch, of JAX on NVIDIA GPUs, and on AMD GPUs also of arrays of 2 GiB or more."""
    device = launch_set.GPUS[gpu]
    problem = plan.Problem(8, (97, 97), (0, 1), 64, 512, "bfloat16")

    def cases(problem, device, layouts):
        found = launch_cases.forward_cases(problem, device)
        for residual, save_out in itertools.product(("bfloat16", "float32"), (True, False)):
            found += launch_cases.forward_cases(problem, device, residual, save_out)
        for has_gamma, joined in itertools.product((True, False), layouts):
            found += launch_cases.backward_cases(problem, device, has_gamma, joined)
        return found

    expected = cases(problem._replace(aligned=True), device, (True, False))
    if device.arch:
        expected = [case._replace(small=small) for case in expected for small in (True, False)]
    else:
        without = plan.Device(device.name, device.capability, device.processors, 0)
        expected += cases(problem, device, (True, False))
        expected += [launch_cases.for_jax(case, device.capability) for case in cases(problem, without, (False,))]
    listed = launch_set.cases(gpu)
    assert launch_set.distinct([*listed, *expected]) == listed


@pytest.mark.parametrize(
    ("change", "kernel", "stages", "fault"),
    [
        ({}, "backward", 3, None),
        ({"registers": 255, "in_flight": None}, "backward", 3, None),
        ({"stack": 8}, "forward", 3, "8 bytes of registers spilled"),
        ({"shared": 1001}, "forward", 3, "needs 1001 bytes of shared memory, the GPU has 1000"),
        ({"tensor_core": False}, "forward", 3, "does not use tensor cores"),
        ({"stores_early": True}, "forward", 3, "writes to global memory before it waits for the previous launch"),
        ({"in_flight": (1, 0)}, "backward", 3, r"the loop over slabs waits for its last copy: (1, 0) in flight"),
        ({"in_flight": (1, 0)}, "backward", 2, None),
        ({"in_flight": (1, 0)}, "forward", 3, None),
    ],
)
def test_the_faults_of_a_compiled_launch(change, kernel, stages, fault):
    report = Report(registers=128, stack=0, shared=1000, tensor_core=True, in_flight=(1, 2), stores_early=False)
    report = report._replace(**change)
    launch = plan.Launch(1, 97, 1, {}, plan.Tile(64, 64, 64, 4, stages), {})
    assert launch_set.weakness(report, launch_cases.Case(kernel, launch, {}, {}), 1000) == fault


STORE, TENSOR_STORE = "@%p1 st.global.v4.b32 [ %rd1 + 0 ], { %r1, %r2 };", "cp.async.bulk.tensor.3d.global.shared::cta"
WAIT = "{ .reg .pred p; @p griddepcontrol.wait; }"


@pytest.mark.parametrize(
    ("lines", "early"),
    [
        ([WAIT, STORE, "ret;"], False),
        (["st.shared.b32 [%r1], %r2;", "ld.global.b32 %r1, [%rd1];", WAIT, TENSOR_STORE, "ret;"], False),
        ([STORE, WAIT, "ret;"], True),
        ([TENSOR_STORE, WAIT, "ret;"], True),
        ([STORE, "ret;"], False),  # nothing to wait for
        # The end of a loop may come before its start.
        (["bra.uni $L__BB0_2;", "$L__BB0_1:", STORE, "@%p2 bra $L__BB0_2;", "ret;", "$L__BB0_2:", WAIT,
          "bra.uni $L__BB0_1;"], False),
        (["@%p2 bra $L__BB0_1;", WAIT, "$L__BB0_1:", STORE, "ret;"], True),  # the branch skips the wait
    ],
)  # fmt: skip
def test_stores_on_a_path_without_the_wait_are_found(lines, early):
    assert _stores_early("\n".join([".visible .entry kernel(", ")", "{", *lines, "}"])) == early
