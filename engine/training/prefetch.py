"""Batches on their way to the device."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor


def prefetch(
    batches: Generator[tuple[tuple[Any, Any], float]],
    place: Callable[[Any, Any], tuple[Any, Any]],
    device: torch.device,
) -> Iterator[tuple[tuple[Any, Any], float]]:
    """((images, labels), seconds waited) with images and labels where ``place`` puts them.

    On a GPU a stream of its own copies them, while the steps before, which the host has only queued, still run.
    Closing it closes ``batches``.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    with closing(batches):
        for batch, seconds in batches:
            with torch.cuda.stream(copying):  # None: no other stream
                placed = place(*batch)
            if copying:
                computing = torch.cuda.current_stream(device)
                computing.wait_stream(copying)
                for tensor in _tensors(placed):
                    tensor.record_stream(computing)  # else its memory is free for the next copy when the host drops it
            yield placed, seconds


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict | list | tuple):
        for part in nested.values() if isinstance(nested, dict) else nested:
            yield from _tensors(part)
