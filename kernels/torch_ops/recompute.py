"""A memory mode: keep the input of the projections for the backward pass instead of what they project."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def recomputed_projection(project: Callable[[Tensor], Tensor], image: Tensor) -> Iterator[Tensor]:
    """Inside, views of ``project(image)`` that operations save for their backward are dropped and made again.

    With query, key and value as slices of one projection, a criss-cross loop then keeps 2 C numbers per pixel
    (its input and its attention's output) instead of 3 C + 2 D, for one more projection in the backward.

    Args:
        project: (N, C, *S) to any tensor; called again in the backward pass, under the same autocast.
        image: its input, which the projection keeps for its own gradient anyway.

    Yields:
        ``project(image)``.

    Example:
        >>> with recomputed_projection(projection, image) as projected:
        ...     query, key, value = projected.split([64, 64, 512], dim=1)
        ...     out = criss_cross_residual(query, key, value, image, gamma)
    """
    device = image.device.type
    autocast = {"enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}
    projected = project(image)
    storage = projected.untyped_storage()._cdata
    views = 0
    again: list[Tensor] = []  # the projection made again, until the last of its views is handed out

    def pack(tensor: Tensor):
        nonlocal views
        if tensor.untyped_storage()._cdata != storage:
            return tensor
        views += 1
        return tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(saved):
        if isinstance(saved, Tensor):
            return saved
        if len(again) == 0:
            with torch.no_grad(), torch.autocast(device, **autocast):
                again.extend([project(image)] * views)
        return again.pop().as_strided(*saved)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield projected
