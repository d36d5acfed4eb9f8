"""Peak memory usage and readable out-of-memory errors."""

import math
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")


def process_peak_mib() -> float:
    """Return the peak resident memory of this process in MiB; NaN on Windows, where Python does not know it."""
    with suppress(OSError, IndexError, ValueError):  # not Linux
        # getrusage would report the peak of the parent process if it is higher.
        return int(_STATUS.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) / 2**10
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, other systems KiB


def available_memory(device: torch.device) -> int:
    """Return the number of bytes that this process can still allocate on a device.

    On the CPU, this is what the system can provide without swapping, within the container's memory limit.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    known = [sys.maxsize]
    with suppress(OSError, StopIteration):  # not Linux
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        known.append(next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):  # no limit: "max", or no file
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
        cached = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        limit = int((_CGROUP / "memory.max").read_text(encoding="utf-8"))
        known.append(limit - used + int(cached.get("inactive_file", 0)))
    return max(min(known), 0)


def reset_peak(device: torch.device) -> None:
    """Reset a GPU's peak memory statistics, since the runs of a sweep share one process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def enough_memory(work: str, advice: str) -> Generator[None]:
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
