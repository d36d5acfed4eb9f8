"""Choose between the Triton kernels, the CPU operators and the reference for torch tensors."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..call import Call, Options, dtype_name
from ..fallback import capability_obstacle, channels_obstacle, dtype_obstacle, refusal, warn_once
from ..launches import plan
from . import devices, reference, transforms
from .cpu import operators as cpu_operators


def attend(call: Call[Tensor]) -> Tensor:
    """Compute the attention with the kernels or the CPU operators if they support the call, else with the reference.

    Backend "auto" is silent on the CPU and during export; on a GPU it logs once why it falls back to the reference.
    Under torch.func transforms and in forward mode, every backend uses the reference.

    Args:
        call: the validated call.

    Raises:
        ValueError: backend is "triton", but the kernels do not support the call.
    """
    query, options = _scaled(call.query, call.options)
    call = call._replace(query=query, options=options)
    backend = options.backend
    if backend == "reference":
        return reference.attend(call)
    exporting = transforms.is_exporting()  # the reference exports everywhere
    if backend == "auto" and (exporting or not call.query.is_cuda):
        if not exporting and cpu_operators.supports(call):
            return cpu_operators.attend(call)
        return reference.attend(call)
    obstacle = _obstacle(call)
    if obstacle is None:
        if transforms.are_active(*call.arrays()):
            return reference.attend(call)
        from . import operators

        return operators.attend(call)
    if backend == "triton":
        raise refusal(obstacle)
    _warn_once(obstacle)
    return reference.attend(call)


def attention_weights(query: Tensor, key: Tensor, position: Sequence[int], recurrence: int, options: Options) -> Tensor:
    """Implement :func:`ccnet.kernels.criss_cross_weights` without a kernel: a single row is too little work."""
    query, options = _scaled(query, options)
    return reference.attention_weights(query, key, position, recurrence, options)


def _scaled(query: Tensor, options: Options) -> tuple[Tensor, Options]:
    """Make the scale a constant: a tensor, which may be learned, is multiplied into the query."""
    scale: Any = options.scale
    if isinstance(scale, Tensor):
        return (query * scale.reshape(())).to(query.dtype), options._replace(scale=1.0)
    return query, options._replace(scale=float(scale))


def _obstacle(call: Call[Tensor]) -> str | None:
    """Return why the kernels do not support the call, or None if they do."""
    query = call.query
    device = "meta" if transforms.has_no_data(query) else query.device.type
    obstacle = channels_obstacle(query.shape[call.options.channel_axis])
    return obstacle or _device_obstacle(device, query.device.index, dtype_name(query))


@torch.compiler.assume_constant_result
def _device_obstacle(device: str, index: int | None, dtype: str) -> str | None:
    """Return why the kernels cannot run on a device or with a dtype, or None if they can."""
    obstacle = dtype_obstacle(dtype)
    if obstacle is not None or device == "meta":  # the operators' fake kernels infer the shapes
        return obstacle
    from .launch import is_interpreted

    if dtype == "bfloat16" and is_interpreted():
        return "Triton's interpreter (TRITON_INTERPRET=1) computes bfloat16 wrongly"
    if device == "cuda":
        return _gpu_obstacle(index)
    if device == "cpu" and is_interpreted():
        return None
    return f"the arrays are on {device}, but Triton needs an NVIDIA or AMD GPU (or TRITON_INTERPRET=1)"


@torch.compiler.assume_constant_result
def _warn_once(obstacle: str) -> None:
    warn_once(obstacle)


@cache
def _gpu_obstacle(index: int | None) -> str | None:
    arch = devices.amd_arch(index)
    if arch:
        known = plan.AMD_SHARED_MEMORY
        return None if arch in known else f"the GPU is an AMD {arch}, and the kernels support {' and '.join(known)}"
    return capability_obstacle(torch.cuda.get_device_capability(index))
