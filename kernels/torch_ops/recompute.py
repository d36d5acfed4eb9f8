"""Recompute the projections in the backward pass, so that only their input is kept."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor

# Size, strides and offset of a view whose memory was dropped.
View = tuple[torch.Size, tuple[int, ...], int | torch.SymInt]


@contextmanager
def recomputed_projection(project: Callable[[Tensor], Tensor], image: Tensor) -> Generator[Tensor]:
    """Recompute ``project(image)`` in the backward pass instead of keeping it for the operations inside the context.

    With query, key and value as slices of one projection, a criss-cross loop then keeps 2 C numbers per pixel (its
    input and the attention output) instead of 3 C + 2 D, at the cost of one more projection in the backward pass.

    Args:
        project: the projection, from (N, C, *S) to any tensor; called again in the backward pass with the same
            autocast settings.
        image: input of the projection, which keeps it for its own gradient anyway.

    Yields:
        ``project(image)``.

    Example:
        >>> with recomputed_projection(projection, image) as projected:
        ...     query, key, value = projected.split([64, 64, 512], dim=1)
        ...     out = criss_cross_residual(query, key, value, image, gamma)
    """
    device = image.device.type
    autocast, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    projected = project(image)
    storage = _storage(projected)
    views = 0
    again: list[Tensor] = []  # one reference to the recomputed projection per view not yet unpacked

    def pack(tensor: Tensor) -> Tensor | View:
        nonlocal views
        if _storage(tensor) != storage:
            return tensor
        views += 1
        return tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(saved: Tensor | View) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        if len(again) == 0:
            with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=autocast):
                again.extend([project(image)] * views)
        return again.pop().as_strided(*saved)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield projected


def _storage(tensor: Tensor) -> int:
    """Return an identifier of the tensor's storage, which fake tensors have as well, unlike an address."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
