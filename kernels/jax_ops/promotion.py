"""Type and rank promotion inside the operator, whatever the user's program forbids in its own code."""

from collections.abc import Generator
from contextlib import contextmanager

import jax


@contextmanager
def usual_promotion() -> Generator[None]:
    """Allow mixed dtypes and ranks in the ``with`` block or the decorated function, as JAX does by default."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
