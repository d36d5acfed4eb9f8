"""What a process uses of it, and running out of it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def process_peak_mib() -> float:
    """The most that this process has had in the host's memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


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
