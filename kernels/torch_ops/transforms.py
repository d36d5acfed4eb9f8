"""What torch is doing around a call besides reverse-mode autograd: torch.func transforms, forward mode, export,
autocast.

The kernels have a derivative in reverse mode alone. Under a transform the plain formula runs, of which torch knows
every derivative and every batched form.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# torch has no public functions that ask these questions.

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def are_active(*arrays: Tensor) -> bool:
    """Return whether a torch.func transform (grad, vmap, jvp, ...) runs, or one of ``arrays`` has a tangent."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(array).tangent is not None for array in arrays)


def are_intercepted(*arrays: Tensor) -> bool:
    """Return whether something sees each of torch's operations: a dispatch mode or a subclass of Tensor.

    Fake and distributed tensors, tracers and FLOP counters are of that kind.
    """
    return torch._C._len_torch_dispatch_stack() > 0 or any(type(array) not in (Tensor, Parameter) for array in arrays)


def is_exporting() -> bool:
    """Return whether torch.export or torch.jit.trace runs; their programs cannot contain a Triton kernel."""
    # Not torch.compiler.is_exporting(), which torch.compile of torch 2.11 takes for True.
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def has_no_data(array: Tensor) -> bool:
    """Return whether an array is a meta or fake tensor, for which operators compute shapes alone."""
    return array.is_meta or isinstance(array, FakeTensor)


def can_hook_saved_tensors() -> bool:
    """Return False if the caller has decided what autograd keeps, as checkpoint and save_on_cpu do, or forbids hooks.

    Of nested hooks torch calls the innermost alone, which would hide the tensors from the caller's.
    """
    hooks: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
    return hooks._saved_tensors_hooks_is_enabled() and hooks._top_saved_tensors_default_hooks(False) is None


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context without autocast on a type of device; meta has none."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
