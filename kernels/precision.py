"""The process-wide precision of float32 products in the Triton kernels."""

FLOAT32_PRECISIONS = ("tf32x3", "ieee", "tf32")

_float32 = "tf32x3"


def float32_precision() -> str:
    """Return the current precision, one of ``FLOAT32_PRECISIONS``."""
    return _float32


def set_float32_precision(name: str) -> None:
    """Set how the Triton kernels multiply float32 numbers; the reference always uses full precision.

    "tf32x3", the default, splits each factor into two TF32 numbers and matches float32 products to about 1e-6;
    "ieee" multiplies in float32 without tensor cores, which is many times slower; "tf32" keeps 10 mantissa bits of
    each factor. AMD GPUs always multiply in float32, on their matrix cores. Functions that ``jax.jit`` has already
    traced and CUDA graphs keep their precision.

    Raises:
        ValueError: ``name`` is not one of these.
    """
    global _float32
    if name not in FLOAT32_PRECISIONS:
        raise ValueError(f"precision {name!r} is unknown: choose one of {', '.join(FLOAT32_PRECISIONS)}")
    _float32 = name
