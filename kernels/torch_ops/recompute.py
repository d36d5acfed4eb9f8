"""Recompute the projections in the backward pass, so that only their input is kept."""

import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from . import transforms
from .joined import storage_id


class _Kept(NamedTuple):
    """A tensor that the backward pass reads, and its version at the time when it was saved."""

    tensor: Tensor
    version: int


class _Available(list[Tensor]):
    """One reference to a projection for each of its views that the backward pass has not read yet."""


_latest: weakref.ref[_Available] | None = None  # the projection that a CPU still keeps


class _View(NamedTuple):
    """A view whose memory was dropped."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


@contextmanager
def recomputed_projection(project: Callable[..., Tensor], image: Tensor, *parameters: Tensor) -> Generator[Tensor]:
    """Recompute the projection in the backward pass instead of keeping it for the operations inside the context.

    With query, key and value as slices of one projection, a criss-cross loop then keeps 2 C numbers per pixel (its
    input and the attention output) instead of 3 C + 2 D, at the cost of one more projection in the backward pass.

    On a CPU, a projection is dropped when the next one is computed. The last loop's stays, because the backward pass
    reads it first, when nothing is gained by recomputing it: a single loop costs no time, two cost one projection.

    Nothing is dropped where there is no backward pass, and where others decide what to keep: under torch.compile, a
    torch.func transform or forward mode, and inside torch.utils.checkpoint and other hooks on saved tensors.

    Args:
        project: the projection, from (N, C, *S) to any tensor; called again in the backward pass with the same
            autocast settings.
        image: input of the projection, which keeps it for its own gradient anyway.
        *parameters: the other tensors that it reads. After a functional_call, a module's own may be different ones.

    Yields:
        ``project(image, *parameters)``.

    Raises:
        RuntimeError: in the backward pass, as elsewhere in torch, if ``image``, a parameter or a saved tensor was
            changed in place since.

    Example:
        >>> with recomputed_projection(conv2d, image, weight, bias) as projected:
        ...     query, key, value = projected.split([64, 64, 512], dim=1)
        ...     out = criss_cross_residual(query, key, value, image, gamma)
    """
    global _latest
    inputs = image, *parameters
    if not _can_recompute(inputs):
        yield project(*inputs)
        return
    if _latest is not None and (earlier := _latest()) is not None:
        earlier.clear()
    device = image.device.type
    autocast, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    projected = project(*inputs)
    storage = storage_id(projected)
    read = [_Kept(tensor, tensor._version) for tensor in inputs]
    views = 0
    available = _Available()

    def pack(tensor: Tensor) -> _Kept | _View:
        nonlocal views
        if storage_id(tensor) != storage:
            return _Kept(tensor.detach(), tensor._version)
        views += 1
        return _View(tensor.size(), tensor.stride(), tensor.storage_offset())

    def unpack(saved: _Kept | _View) -> Tensor:
        if isinstance(saved, _Kept):
            return _unchanged(saved)
        for kept in read:
            _unchanged(kept)
        if len(available) == 0:
            with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=autocast):
                available.extend([project(*inputs)] * views)
        return available.pop().as_strided(*saved)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield projected
    if device == "cpu" and not transforms.are_intercepted(image):
        available.extend([projected.detach()] * views)
        _latest = weakref.ref(available)


def _can_recompute(inputs: tuple[Tensor, ...]) -> bool:
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and transforms.can_hook_saved_tensors()
        and not transforms.are_active(*inputs)
        and not any(tensor.is_meta or tensor.is_inference() for tensor in inputs)  # no autocast, or no version
    )


def _unchanged(kept: _Kept) -> Tensor:
    """Return the tensor; raise RuntimeError if it was changed in place. Hooks replace torch's own check."""
    tensor, version = kept
    if tensor._version == version:
        return tensor
    raise RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"{tuple(tensor.shape)} in {tensor.dtype} is at version {tensor._version}; expected version {version} "
        "instead: change it after the backward pass, or change a clone"
    )
