"""Which implementation a torch call takes: the Triton kernels or the plain path."""

import importlib.util
import logging
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from . import plan, reference

_log = logging.getLogger(__name__)


def choose(backend: str, query: Tensor, channel_axis: int) -> ModuleType:
    """The module that computes the call.

    "auto" is silent on the CPU and in an export, where the plain path is what one wants, and says once why a
    GPU does not get its kernels.

    Raises:
        ValueError: backend "triton" where the kernels cannot run.
    """
    if backend == "reference" or (backend == "auto" and (not query.is_cuda or _is_exporting())):
        return reference
    obstacle = _obstacle(query.device.type, query.device.index, str(query.dtype))
    if query.shape[channel_axis] > plan.MAX_QUERY_CHANNELS:
        obstacle = f"more than {plan.MAX_QUERY_CHANNELS} query channels do not fit on chip"
    if obstacle is None:
        from . import torch_op

        return torch_op
    if backend == "triton":
        raise ValueError(f"backend='triton' cannot take this call: {obstacle}; use backend='reference'")
    _log_once(obstacle)
    return reference


def criss_cross_attention(
    query: Tensor, key: Tensor, value: Tensor, axes: Sequence[int], scale: float, channel_axis: int, backend: str
) -> Tensor:
    """See :func:`kernels.criss_cross_attention`; ``axes`` are sorted and the input is checked."""
    module = choose(backend, query, channel_axis)
    return module.criss_cross_attention(query, key, value, axes, scale, channel_axis)


def criss_cross_residual(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residual: Tensor,
    gamma: Tensor,
    axes: Sequence[int],
    scale: float,
    channel_axis: int,
    backend: str,
) -> Tensor:
    """See :func:`kernels.criss_cross_residual`; ``axes`` are sorted and the input is checked."""
    module = choose(backend, query, channel_axis)
    if module is reference:
        out = reference.criss_cross_attention(query, key, value, axes, scale, channel_axis)
        return (gamma * out + residual).to(residual.dtype)
    return module.criss_cross_residual(query, key, value, residual, gamma, axes, scale, channel_axis)


def _is_exporting() -> bool:
    # A Triton kernel has no place in an exported program or in ONNX: the plain path exports everywhere.
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


@torch.compiler.assume_constant_result
def _obstacle(device: str, index: int | None, dtype: str) -> str | None:
    """Why the kernels cannot run there, and None if they can."""
    if dtype.removeprefix("torch.") not in plan.ITEM_SIZE:
        return f"the kernels take {', '.join(plan.ITEM_SIZE)}, not {dtype.removeprefix('torch.')}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cuda":
        return _gpu_obstacle(index)
    from .launch import is_interpreted

    if device == "cpu" and is_interpreted():
        return None
    return f"the arrays are on {device}, and Triton needs an NVIDIA GPU (or TRITON_INTERPRET=1)"


@cache
def _gpu_obstacle(index: int) -> str | None:
    if torch.version.cuda is None:
        return "the kernels are written for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(index)
    if capability < plan.MIN_CAPABILITY:
        least = ".".join(map(str, plan.MIN_CAPABILITY))
        return f"the GPU has compute capability {'.'.join(map(str, capability))}, below {least}"
    return None


@torch.compiler.assume_constant_result
def _log_once(obstacle: str) -> None:
    if obstacle not in _logged:
        _logged.add(obstacle)
        _log.warning("criss-cross attention takes the plain path: %s", obstacle)


_logged: set[str] = set()
