"""The GPU that a call is lowered for: the one that runs it, or a named target, such as on a machine without a GPU."""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import jax

from ..launches import plan

VARIABLE = "CCNET_JAX_TARGET"
# Multiprocessors of one GPU per architecture; their number only affects the grids of small calls.
_PROCESSORS = {
    "sm_80": 108, "sm_86": 84, "sm_87": 16, "sm_89": 142, "sm_90": 132, "sm_100": 148, "sm_103": 160, "sm_120": 188,
    "sm_121": 48,
}  # fmt: skip
_log = logging.getLogger(__name__)
_named: str | None = None
_running_on: ContextVar[Any] = ContextVar("ccnet_jax_device", default=None)


def set_jax_target(name: str | None) -> None:
    """Set the GPU architecture for which later calls are lowered, such as "sm_90" to export a program without a GPU.

    None restores the default: the environment variable ``CCNET_JAX_TARGET`` or, if it is not set, the GPU that runs the
    program. A program that has already been lowered keeps its target.

    Args:
        name: "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121", or None.

    Raises:
        ValueError: ``name`` is none of these.
    """
    global _named
    if name is not None:
        _target(name)
    _named = name


@contextmanager
def running_on(gpu: Any) -> Generator[None]:
    """Lower the calls in the ``with`` block for this JAX device, or None if the device is unknown."""
    token = _running_on.set(gpu)
    try:
        yield
    finally:
        _running_on.reset(token)


def current_gpu() -> Any:
    """Return the device of the innermost :func:`running_on` block, or None."""
    return _running_on.get()


def device() -> plan.Device:
    """Return the properties of the GPU to lower for.

    This is the named target, else the device that runs the program, else this machine's first GPU, else an H200.

    Raises:
        ValueError: ``CCNET_JAX_TARGET`` names an unknown architecture.
    """
    name = _named or os.environ.get(VARIABLE)
    if name:
        return _target(name)
    gpu = current_gpu()
    if getattr(gpu, "platform", None) != "gpu":
        gpu = _first_gpu()
    if gpu is None:
        _warn_of_default()
        return _target("sm_90")
    return _properties(gpu)


@cache
def _target(name: str) -> plan.Device:
    if name not in _PROCESSORS:
        raise ValueError(f"target {name!r} (set_jax_target, {VARIABLE}) is unknown: choose {', '.join(_PROCESSORS)}")
    number = int(name.removeprefix("sm_"))
    # An H200, whose tiles are pinned, stands for sm_90. No tile depends on the size of shared memory.
    gpu = "NVIDIA H200" if name == "sm_90" else name
    return plan.Device(gpu, (number // 10, number % 10), _PROCESSORS[name], 0)


@cache
def _first_gpu() -> Any:
    try:
        return jax.devices("cuda")[0]
    except RuntimeError:
        return None


@cache
def _properties(gpu: Any) -> plan.Device:
    major, minor = map(int, gpu.compute_capability.split("."))
    return plan.Device(gpu.device_kind, (major, minor), gpu.core_count, 0)  # JAX does not report the shared memory


@cache
def _warn_of_default() -> None:
    _log.warning(
        "this machine has no GPU, so criss-cross attention is lowered for sm_90 (H100, H200): name another target with "
        "ccnet.kernels.set_jax_target or %s",
        VARIABLE,
    )
