"""AMD GPUs: which of them run the kernels, and the kernels for memory beyond 2 GB."""

from types import SimpleNamespace

import pytest
import torch
from triton_calls import INTERPRETED

from ccnet.kernels.launches import plan
from ccnet.kernels.torch_ops import devices, dispatch, launch
from ccnet.kernels.torch_ops.devices import device_of

pytestmark = INTERPRETED


@pytest.fixture
def amd(monkeypatch):
    """Return a function that makes torch report an AMD GPU of an architecture."""

    def report(name):
        properties = SimpleNamespace(name="AMD", major=9, minor=4, multi_processor_count=304, gcnArchName=name)
        monkeypatch.setattr(torch.version, "hip", "7.0")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        for function in (dispatch._gpu_obstacle, devices.amd_arch, devices.device_of):
            function.cache_clear()

    yield report
    monkeypatch.undo()
    for function in (dispatch._gpu_obstacle, devices.amd_arch, devices.device_of):
        function.cache_clear()


def test_amd_gpus_run_the_kernels_if_they_are_compiled_for_them(amd):
    amd("gfx942:sramecc+:xnack-")
    assert dispatch._device_obstacle("cuda", 0, "float16") is None
    assert device_of(0) == plan.Device("AMD", (9, 4), 304, 65536, "gfx942")
    amd("gfx1100")
    obstacle = "the GPU is an AMD gfx1100, and the kernels support gfx942 and gfx950"
    assert dispatch._device_obstacle("cuda", 0, "float16") == obstacle


@pytest.mark.parametrize(("hip", "compilations"), [("7.0", 2), (None, 1)])
def test_memory_beyond_2_gb_gets_a_kernel_of_its_own_on_amd(monkeypatch, hip, compilations):
    """Triton's AMD backend addresses smaller memory with 32-bit offsets, so that kernel must not be reused."""
    compiled = []

    class Kernel:
        arg_names = ()

        def __getitem__(self, grid):
            return lambda *arguments, **constants: compiled.append(arguments) or {(1, 1, 1): lambda *_: None}

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(launch, "is_interpreted", lambda: False)
    planned = plan.Launch(1, 16, 1, {"WAITS": False}, plan.Tile(16, 16, 16, 4, 2), {})
    for size in (16, 2**31, 16):  # bytes of the memory in which the array lies
        launch.run(Kernel(), planned, (torch.empty(size, dtype=torch.uint8, device="meta")[:16], None), (16,), 1.0)
    assert len(compiled) == compilations
