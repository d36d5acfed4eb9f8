"""Why the kernels do not support a call, and the error and the warning that say so, in torch and in JAX."""

import importlib.util
import logging
from functools import cache

from .launches import plan

_log = logging.getLogger(__name__)


def channels_obstacle(query_channels: int) -> str | None:
    """Return why the kernels do not support a number of query channels, or None if they do."""
    if query_channels > plan.MAX_QUERY_CHANNELS:
        return f"more than {plan.MAX_QUERY_CHANNELS} query channels do not fit on chip"
    return None


def dtype_obstacle(dtype: str) -> str | None:
    """Return why no kernel can be compiled for a dtype, or None if one can."""
    if dtype not in plan.ITEM_SIZE:
        return f"the kernels support {', '.join(plan.ITEM_SIZE)}, not {dtype}"
    return "triton is not installed" if importlib.util.find_spec("triton") is None else None


def capability_obstacle(capability: tuple[int, int]) -> str | None:
    """Return why the kernels cannot run on a GPU of this compute capability, or None if they can."""
    if capability < plan.MIN_CAPABILITY:
        least, has = (".".join(map(str, pair)) for pair in (plan.MIN_CAPABILITY, capability))
        return f"the GPU has compute capability {has}, below {least}"
    return None


def refusal(obstacle: str) -> ValueError:
    """Return the error for a call that requests the kernels where they cannot run."""
    return ValueError(f"backend='triton' cannot run this call: {obstacle}; use backend='reference'")


@cache
def warn_once(obstacle: str) -> None:
    """Log why a call on a GPU falls back to the reference, once per reason and process."""
    _log.warning("criss-cross attention falls back to the reference: %s", obstacle)
