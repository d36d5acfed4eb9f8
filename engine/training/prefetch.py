"""Copy the next batch to the device while the current step runs."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor


def prefetch(
    batches: Generator[tuple[Any, Any]], place: Callable[[Any, Any], tuple[Any, Any]], device: torch.device
) -> Generator[tuple[Any, Any]]:
    """Yield (images, labels) where `place` puts them.

    On a GPU, a stream of its own copies them while the previous steps, which the host has only queued, still run.
    Closing the generator closes `batches`.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    with closing(batches):
        for batch in batches:
            with torch.cuda.stream(copying):  # does nothing if it is None
                placed = place(*batch)
            if copying:
                computing = torch.cuda.current_stream(device)
                computing.wait_stream(copying)
                for tensor in _tensors(placed):
                    tensor.record_stream(computing)  # else the next copy reuses its memory once the host drops it
            yield placed


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict | list | tuple):
        for part in nested.values() if isinstance(nested, dict) else nested:
            yield from _tensors(part)
