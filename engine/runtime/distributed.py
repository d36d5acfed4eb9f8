"""Join the processes started by ``torchrun``, exchange values and average gradients."""

import itertools
import os
import re
import threading
import time
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from .launchers import is_one_of_several
from .overrides import sweep_job
from .stop_signals import second_signal_ends

T = TypeVar("T")
_TIMED_OUT = re.compile("timed out waiting|application timeout|watchdog.*timeout", re.IGNORECASE)  # gloo, NCCL
_RUNS = itertools.count()  # numbers the runs of this process that are not part of a sweep
_STORES: dict[tuple[str, ...], tuple[c10d.Store, int, int]] = {}  # by the environment that describes the group
_JOINING = timedelta(minutes=10)
_ROLL_CALL = 10.0  # seconds for all processes to report that a collective operation has failed


@contextmanager
def processes(device: torch.device, *, timeout: float = 600) -> Generator[torch.device]:
    """Join the process group of a ``torchrun`` job for the duration of the block.

    Args:
        device: the device of the run.
        timeout: seconds to wait for the other processes in a collective operation.

    Yields:
        The device of this process, set as torch's current device. If several processes use GPUs and `device` does not
        name one, it is the GPU whose index is the process's local rank.

    Raises:
        ValueError: ``WORLD_SIZE`` is set, but not the other variables of ``torchrun``.
        ConnectionError: another process has died, and its own error says why; or not all processes joined in time.
        TimeoutError: another process did not take part in a collective operation in time; the message names it.
    """
    alone = not is_one_of_several() or dist.is_initialized()
    if not alone:
        _check_environment(device)
    if device.type == "cuda" and device.index is None and not alone:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    # Checkpoints store the random state of the current device.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if alone:
            yield device
        else:
            with second_signal_ends(), _joined(device, timeout):
                yield device


def _check_environment(device: torch.device) -> None:
    """Raise ValueError unless all variables that describe the process group are set, as by ``torchrun``."""
    numbers = ["RANK", "MASTER_PORT", *(["LOCAL_RANK"] if device.type == "cuda" and device.index is None else [])]
    unset = [name for name in numbers if not os.environ.get(name, "").isdecimal()]
    unset += [] if os.environ.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if unset:
        environment = ", ".join(f"{name}={os.environ.get(name, '')!r}" for name in unset)
        raise ValueError(
            f"the environment variable WORLD_SIZE={os.environ['WORLD_SIZE']} announces several processes, but "
            f"{environment} does not describe how they connect: start them with torchrun, or unset WORLD_SIZE"
        )


@contextmanager
def _joined(device: torch.device, timeout: float) -> Generator[None]:
    limit = timedelta(seconds=timeout)
    try:
        shared, own, size = _rendezvous(limit)
        shared.set_timeout(limit)
        store = c10d.PrefixStore(f"run {_number_of_run()}", shared)
        # CPU tensors go through gloo, so that polling for stop requests does not wait for the GPU.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=c10d.PrefixStore("group", store),
            rank=own,
            world_size=size,
            timeout=limit,
        )
    except dist.DistError as error:
        raise _not_joined(error, timeout) from error
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        timed_out = _TIMED_OUT.search(text) is not None
        if not (timed_out or isinstance(error, dist.DistError) or "gloo/transport" in text):
            raise
        missing = _missing(store, own, size, wait=timed_out)
        if timed_out:
            raise _timeout(missing, size, timeout) from error
        raise ConnectionError("another process of this run has died: its own error says why") from error
    finally:
        dist.destroy_process_group()


def _not_joined(error: Exception, timeout: float) -> ConnectionError:
    """Return the error for a process group that could not be formed within `timeout` seconds."""
    reason = str(error).splitlines()[0]
    if "EADDRINUSE" in reason:
        return ConnectionError(
            f"port {os.environ['MASTER_PORT']} is in use, for example by a run that is still active: set another "
            "MASTER_PORT, or let torchrun choose one"
        )
    return ConnectionError(
        f"not all processes of this run have joined within {timeout:g} s (collective_timeout): {reason}"
    )


def _timeout(missing: Sequence[int], size: int, timeout: float) -> TimeoutError:
    """Return the error for a collective operation that waited `timeout` seconds for the `missing` ranks of `size`."""
    reason = "one of the processes took part only later: if such pauses are normal, set a higher limit"
    if missing:
        ranks = f"process {', '.join(map(str, missing))} of 0 to {size - 1}"
        reason = f"{ranks} has not taken part: it hangs, or was stopped or killed"
    return TimeoutError(
        f"a collective operation has waited for {timeout:g} s (collective_timeout), but {reason}. resume=auto "
        "continues from the newest checkpoint"
    )


def _rendezvous(timeout: timedelta) -> tuple[c10d.Store, int, int]:
    """Return the store through which the processes find each other, and the rank and the number of processes.

    A process that runs several times, as in a sweep, keeps its store: torchrun serves the same one to all runs, and a
    store that rank 0 serves for a run might disappear while another process is connecting to it for the next one.
    """
    group = tuple(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"))
    if group not in _STORES:
        _STORES[group] = next(rendezvous("env://", timeout=timeout))
    return _STORES[group]


def _number_of_run() -> int:
    """Return a number that all processes use for this run and for no other.

    In the store, keys of an earlier run with the same name would give the addresses of its closed connections. In a
    sweep, it is the index of the run, since a process that fails before it joins would miss a count.
    """
    job = sweep_job()
    return next(_RUNS) if job is None else job


def _missing(store: c10d.Store, own: int, size: int, *, wait: bool) -> list[int]:
    """Tell the other ranks that a collective operation failed here; if `wait`, return the ranks that report no failure.

    When an operation times out, gloo closes its connections, so the operation fails in every process that takes part.
    """
    present = {own}

    def call() -> None:
        with suppress(RuntimeError):  # the process that holds the store may be the missing one
            store.set(f"failed/{own}", "")
            while wait and len(present) < size:
                present.update(peer for peer in range(size) if store.check([f"failed/{peer}"]))
                time.sleep(0.1)

    calling = threading.Thread(target=call, daemon=True)  # a stopped store never answers
    calling.start()
    calling.join(_ROLL_CALL)
    return sorted(set(range(size)) - present) if wait else []


def rank() -> int:
    """Return the rank of this process; 0 if it is the only one. Rank 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Wait until every process has reached this point."""
    if dist.is_initialized():
        dist.barrier()


def from_first(value: T) -> T:
    """Broadcast rank 0's `value`, such as a folder name that contains the time, to every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def from_first_before_joining(name: str, value: str) -> str:
    """Return rank 0's `value` in every process, before :func:`processes`; each `name` can be used only once."""
    store, own, _ = _rendezvous(_JOINING)
    if own == 0:
        store.set(name, value)
    return store.get(name).decode()


def from_all(value: T) -> list[T]:
    """Gather `value` from every process, in order of rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def any_of_all(flag: bool) -> bool:
    """Return True if `flag` is set in any process."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def synchronise(model: nn.Module, device: torch.device) -> None:
    """Broadcast the weights, synchronise batch norm, and draw dropout masks for the global batch."""
    if world_size() == 1:
        return
    from .shared_layers import share_batch_norm, share_dropout  # imports timm, which takes seconds

    share_batch_norm(model, device)
    share_dropout(model)
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, 0)


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network after its first step, so that the backward pass averages the gradients over the processes.

    If that step left a parameter without a gradient, for example because the loss ignores an output, the wrapper looks
    for unused parameters in every step.
    """
    # Caused by 1x1 convolutions, whose weights have ambiguous strides.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    unused = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.grad is None]
    return DistributedDataParallel(
        model,
        device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
        find_unused_parameters=bool(unused),
    )


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """All-reduce (mean) the gradients of a network that :func:`parallel` does not wrap, after its backward pass."""
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad.div_(world_size()))
