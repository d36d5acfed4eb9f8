"""The error and the warning for calls that the kernels do not support."""

import logging
from functools import cache

_log = logging.getLogger(__name__)


def refusal(obstacle: str) -> ValueError:
    """Return the error for a call that requests the kernels where they cannot run."""
    return ValueError(f"backend='triton' cannot run this call: {obstacle}; use backend='reference'")


@cache
def warn_once(obstacle: str) -> None:
    """Log why a call on a GPU falls back to the reference, once per reason and process."""
    _log.warning("criss-cross attention falls back to the reference: %s", obstacle)
