"""A driver for Triton that compiles for a Hopper GPU, but loads and launches nothing."""

import os
from types import SimpleNamespace


def leave_interpreter():
    """Import Triton in compiler mode, before another import in this process can select its interpreter."""
    os.environ.pop("TRITON_INTERPRET", None)
    import triton  # noqa: F401


def activate():
    """Make it Triton's driver in this process; return the list to which it adds each launch.

    A launch is the kernel's hash in Triton's cache, and its grid, stream and arguments, with pointers as numbers.
    """
    os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is first imported
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    launches = []

    class Launcher:
        def __init__(self, source, metadata):
            self.kernel = metadata.hash

        def __call__(self, *arguments):
            # Grid and stream; then, after handles and hooks, the kernel's arguments.
            arguments = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in (*arguments[:4], *arguments[9:])]
            launches.append((self.kernel, arguments))

    class Driver:
        launcher_cls = Launcher
        utils = SimpleNamespace(
            load_binary=lambda *_: (1, 1, 128, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": 232448},
            unload_module=lambda *_: None,
        )
        get_current_device = get_current_stream = lambda *_: 0
        get_current_target = lambda _: GPUTarget("cuda", 90, 32)  # noqa: E731

    triton.runtime.driver.set_active(Driver())
    return launches
