"""Join the processes started by ``torchrun``, exchange values and average gradients."""

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
    """Join the process group that ``torchrun`` started, for the duration of the block.

    Yields:
        The device of this process, set as torch's current device; with several GPUs, the one with its local rank.

    Raises:
        ConnectionError: another process has died; its own error says why.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized()
    if device.type == "cuda" and device.index is None and not alone:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    # Checkpoints store the random state of the current device.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if alone:
            yield device
        else:
            with _joined(device):
                yield device


@contextmanager
def _joined(device: torch.device) -> Iterator[None]:
    # CPU tensors go through gloo, so that polling for stop requests does not wait for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            raise ConnectionError("another process of this run has died: its own error says why") from error
        raise
    finally:
        dist.destroy_process_group()


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


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the module to call in a training step: `model`, or a wrapper that averages gradients over processes.

    The wrapper shares `model`'s parameters and synchronises its batch norm across processes.
    """
    if world_size() == 1:
        return model
    from .sync_batch_norm import share_batch_norm  # imports timm, which takes seconds

    share_batch_norm(model, device)
    # Caused by 1x1 convolutions, whose weights have ambiguous strides.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(
        model,
        device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None,
        find_unused_parameters=True,  # a loss may ignore an output
    )
