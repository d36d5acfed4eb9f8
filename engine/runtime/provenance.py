"""Record where results come from: machine, versions, commit and date."""

import datetime
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parents[2]
_PROCESSORS = Path("/proc/cpuinfo")


def machine_of(device: torch.device) -> str:
    """Return the name of the GPU, or the name of the CPU and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} {'thread' if threads == 1 else 'threads'}"


def _processor() -> str:
    """Return the name of the CPU; "CPU" on systems other than Linux, and for CPUs that do not report it."""
    with suppress(OSError):
        for line in _PROCESSORS.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "CPU"


def provenance(device: torch.device) -> dict[str, str]:
    """Return the machine, versions, commit and date that are recorded with every published result and every run."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "none"
    return {
        "machine": machine_of(device),
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": _commit() or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def _commit() -> str:
    """Return the commit of this repository; "" for an installed package."""
    if not (_ROOT / ".git").exists():  # git would describe a repository that contains the environment
        return ""
    try:
        describe = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git on this machine
        return ""
