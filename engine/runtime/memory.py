"""Peak memory usage and readable out-of-memory errors."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def process_peak_mib() -> float:
    """Return the peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def reset_peak(device: torch.device) -> None:
    """Reset a GPU's peak memory statistics, since the runs of a sweep share one process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def enough_memory(work: str, advice: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors, on GPU or CPU, into a MemoryError that says what to reduce.

    Args:
        work: the subject of the message, such as "a training step".
        advice: how to reduce the memory usage.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise MemoryError(f"{work} needs more memory than available: {advice}. {str(error).splitlines()[0]}") from error
