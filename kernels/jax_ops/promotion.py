"""Use JAX's default dtype and rank promotion in the operator and the networks, even if a program disables it."""

from collections.abc import Generator
from contextlib import contextmanager

import jax


@contextmanager
def usual_promotion() -> Generator[None]:
    """Allow mixed dtypes and ranks in the ``with`` block or decorated function, as JAX does by default."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
