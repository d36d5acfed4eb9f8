"""Several processes that share out one piece of work, as ``torchrun`` starts them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started, and leave them at the end.

    Yields:
        The device of this process, which is torch's current one: with several GPUs, its own.

    Raises:
        ConnectionError: another process has gone; its own error says why.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized()
    if device.type == "cuda" and device.index is None and not alone:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    # The random state that a checkpoint keeps is the current device's.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if alone:
            yield device
        else:
            with _joined(device):
                yield device


@contextmanager
def _joined(device: torch.device) -> Iterator[None]:
    # Of GPUs, what is on the host goes by gloo: a request to stop is asked about without waiting for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            raise ConnectionError("another process of this run has gone: its own error says why") from error
        raise
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process; the first one writes what all have worked out."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def from_first(value: T) -> T:
    """The first process's ``value``, such as a folder named by the time, for all."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def from_all(value: T) -> list[T]:
    """Every process's ``value``, in order."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def any_of_all(flag: bool) -> bool:
    """Whether ``flag`` is set in any process."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """What to call for a training step: ``model`` itself, or with several processes one that shares its gradients.

    ``model`` keeps its parameters; its batch norm then runs over all processes.
    """
    if world_size() == 1:
        return model
    from .sync_batch_norm import share_batch_norm  # timm takes seconds to import, which an evaluation has spent anyway

    share_batch_norm(model, device)
    # Of 1x1 convolutions, whose strides can be written in two ways.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(
        model,
        device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
        find_unused_parameters=True,  # a loss need not read every output
    )
