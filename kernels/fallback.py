"""Falling back to the reference where the kernels cannot take a call."""

import logging
from functools import cache

_log = logging.getLogger(__name__)


def refusal(obstacle: str) -> ValueError:
    """Return the error for a call that insists on the kernels where they cannot run."""
    return ValueError(f"backend='triton' cannot take this call: {obstacle}; use backend='reference'")


@cache
def warn_once(obstacle: str) -> None:
    """Log why a GPU does not get its kernels, once per reason and process."""
    _log.warning("criss-cross attention falls back to the reference: %s", obstacle)
