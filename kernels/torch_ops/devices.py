"""The properties of a GPU, NVIDIA or AMD, as torch reports them."""

from functools import cache

import torch

from ..launches import plan


@cache
def device_of(index: int | None) -> plan.Device:
    """Return the GPU properties that tile sizes depend on; None, the interpreter, is treated as a small Hopper GPU."""
    if index is None:
        return plan.Device("interpreter", (9, 0), 2, 232448, descriptors=True)
    from .launch import is_interpreted  # imports Triton

    properties = torch.cuda.get_device_properties(index)
    arch = amd_arch(index)
    hopper = properties.major == 9 and not arch
    return plan.Device(
        properties.name,
        (properties.major, properties.minor),
        properties.multi_processor_count,
        # Not reported by torch on ROCm.
        plan.AMD_SHARED_MEMORY[arch] if arch else properties.shared_memory_per_block_optin,  # pyrefly: ignore[missing-attribute]
        arch,
        descriptors=hopper,
        overlaps=hopper and not is_interpreted(),  # the interpreter cannot run the instructions for it
    )


@cache
def amd_arch(index: int | None) -> str:
    """Return AMD's name for a GPU's architecture, such as "gfx942"; an empty string for NVIDIA GPUs."""
    if torch.version.hip is None:
        return ""
    return torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]  # without the feature flags after it
