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
    """A tensor that the backward pass reads, and its version when it was saved."""

    tensor: Tensor
    version: int


class _View(NamedTuple):
    """The geometry of a saved view of the projection, whose memory is dropped."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


class _Recomputation:
    """Saved-tensor hooks that drop the views of a projection and recompute it when one of them is read.

    Args:
        project: the function that computes the projection.
        inputs: its arguments.
        projected: its result, of which only the storage's identifier and the version are kept.
    """

    def __init__(self, project: Callable[..., Tensor], inputs: tuple[Tensor, ...], projected: Tensor):
        self._project, self._inputs = project, inputs
        self._storage, self._version = storage_id(projected), projected._version
        self._read = [_Kept(tensor, tensor._version) for tensor in inputs]
        self._device = inputs[0].device.type
        self._autocast = torch.is_autocast_enabled(self._device), torch.get_autocast_dtype(self._device)
        self._views = 0
        self._available: list[_Kept] = []  # one reference to the projection per view still to be read

    def pack(self, tensor: Tensor) -> _Kept | _View:
        """Return what autograd saves instead of the tensor."""
        # A projection that was modified in-place, as by ReLU, cannot be recomputed.
        if storage_id(tensor) != self._storage or tensor._version != self._version:
            return _Kept(tensor.detach(), tensor._version)
        self._views += 1
        return _View(tensor.size(), tensor.stride(), tensor.storage_offset())

    def unpack(self, saved: _Kept | _View) -> Tensor:
        """Return the tensor; raise RuntimeError if it, or an input of the projection, was modified in-place."""
        if isinstance(saved, _Kept):
            return _unchanged(saved)
        for kept in self._read:
            _unchanged(kept)
        try:
            # One step, because a forward pass in another thread may drop the projection at any time.
            kept = self._available.pop()
        except IndexError:
            enabled, dtype = self._autocast
            with torch.no_grad(), torch.autocast(self._device, dtype=dtype, enabled=enabled):
                projected = self._project(*self._inputs)
            kept = _Kept(projected, projected._version)
            self._available.extend([kept] * (self._views - 1))
        return _unchanged(kept).as_strided(*saved)

    def keep(self, projected: Tensor) -> None:
        """Keep the projection until each of its views has been read."""
        self._available.extend([_Kept(projected, self._version)] * self._views)

    def drop(self) -> None:
        """Drop the projection, so that it is recomputed when one of its views is read."""
        self._available.clear()


_latest: weakref.ref[_Recomputation] | None = None  # the one whose projection is still kept on a CPU


@contextmanager
def recomputed_projection(project: Callable[..., Tensor], image: Tensor, *parameters: Tensor) -> Generator[Tensor]:
    """Recompute the projection in the backward pass instead of saving it for the operations in the ``with`` block.

    With query, key and value as slices of one projection, the kernels then save 2 C numbers per pixel and loop (the
    input and the attention output) instead of 3 C + 2 D, at the cost of one more projection in the backward pass.

    On a CPU, a projection is dropped only when the next one is computed. The last loop's projection is kept: the
    backward pass reads it first, so recomputing it would save nothing. One loop therefore recomputes nothing, and two
    loops recompute one projection.

    Nothing is dropped if there is no backward pass, or if something else decides what to save: torch.compile, export, a
    torch.func transform, forward mode, torch.utils.checkpoint or other saved-tensor hooks.

    Args:
        project: the projection, from (N, C, *S) to any tensor; called again in the backward pass with the same
            autocast settings.
        image: input of the projection, which autograd saves for the projection's gradient anyway.
        *parameters: the other tensors that it reads. Passed explicitly, because after a functional_call, a module's own
            parameters are other tensors.

    Yields:
        ``project(image, *parameters)``.

    Raises:
        RuntimeError: in the backward pass, as elsewhere in torch, if ``image``, a parameter or a saved tensor was
            modified in-place since. A projection that was dropped may be modified: it is recomputed.

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
        earlier.drop()
    projected = project(*inputs)
    recomputation = _Recomputation(project, inputs, projected)
    with torch.autograd.graph.saved_tensors_hooks(recomputation.pack, recomputation.unpack):
        yield projected
    if image.device.type == "cpu" and not transforms.are_intercepted(image):
        recomputation.keep(projected.detach())
        _latest = weakref.ref(recomputation)


def _can_recompute(inputs: tuple[Tensor, ...]) -> bool:
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not transforms.is_exporting()
        and transforms.can_hook_saved_tensors()
        and not transforms.are_active(*inputs)
        # Meta tensors have no autocast, and inference tensors have no version.
        and not any(tensor.is_meta or tensor.is_inference() for tensor in inputs)
    )


def _unchanged(kept: _Kept) -> Tensor:
    """Return the tensor; raise RuntimeError if it was modified in-place. Hooks bypass torch's own check."""
    tensor, version = kept
    # Compiled autograd traces this function with symbolic tensors, whose versions are symbolic too.
    if torch.compiler.is_compiling() or tensor._version == version:
        return tensor
    raise RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"{tuple(tensor.shape)} in {tensor.dtype} is at version {tensor._version}; expected version {version} "
        "instead: change it after the backward pass, or change a clone"
    )
