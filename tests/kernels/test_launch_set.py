"""The command that compiles every launch reports each GPU when it is done, and fails if any launch is unsound."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from ccnet.kernels.launches import launch_set

pytest.importorskip("triton", reason="triton is not installed")


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
