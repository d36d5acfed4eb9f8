"""Query the state of torch around a call: torch.func transforms, forward mode, dispatch modes, export and autocast.

The kernels only support reverse-mode differentiation. Under a transform the reference runs instead, whose plain torch
operations have every derivative and batching rule.
"""

# torch has no public API for these queries.

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def are_active(*arrays: Tensor) -> bool:
    """Return whether a torch.func transform (grad, vmap, jvp, ...) is active, or one of ``arrays`` has a tangent."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(array).tangent is not None for array in arrays)


def are_intercepted(*arrays: Tensor) -> bool:
    """Return whether a dispatch mode or a Tensor subclass intercepts individual torch operations.

    Examples are fake and distributed tensors, tracers, FLOP counters, and the gradients of ``is_grads_batched=True``.
    """
    return torch._C._len_torch_dispatch_stack() > 0 or any(map(_is_intercepted, arrays))


def _is_intercepted(array: Tensor) -> bool:
    functorch: Any = torch._C._functorch
    return type(array) not in (Tensor, Parameter) or functorch.is_legacy_batchedtensor(array)


def is_exporting() -> bool:
    """Return whether torch.export or torch.jit.trace is running, whose programs should run without this package."""
    # Not torch.compiler.is_exporting(), which torch.compile evaluates to True in torch 2.11.
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()


def has_no_data(array: Tensor) -> bool:
    """Return whether an array is a meta or fake tensor, for which operators only infer shapes."""
    return array.is_meta or isinstance(array, FakeTensor)


def can_hook_saved_tensors() -> bool:
    """Return False if the caller already hooks saved tensors, as checkpoint and save_on_cpu do, or forbids hooks.

    torch calls only the innermost of nested hooks, so another one would hide the tensors from the caller's.
    """
    hooks: Any = torch._C._autograd
    return hooks._saved_tensors_hooks_is_enabled() and hooks._top_saved_tensors_default_hooks(False) is None


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context that disables autocast on a device type; the meta device has no autocast."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
