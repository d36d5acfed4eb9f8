"""Running out of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def enough_memory(work: str, advice: str) -> Iterator[None]:
    """Turn torch's errors, of a GPU and of the host, into a MemoryError that says what to turn down.

    Args:
        work: what is being done, as the message begins.
        advice: what to do.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise MemoryError(f"{work} needs more memory than there is: {advice}. {str(error).splitlines()[0]}") from error
