"""The precision in which the kernels multiply float32, for the whole process."""

FLOAT32_PRECISIONS = ("tf32x3", "ieee", "tf32")

_float32 = "tf32x3"


def float32_precision() -> str:
    """Return the precision that calls take from now on, one of ``FLOAT32_PRECISIONS``."""
    return _float32


def set_float32_precision(name: str) -> None:
    """Choose how the Triton kernels multiply float32; the reference always multiplies in full precision.

    "tf32x3", the default, splits each factor into two TF32 numbers and is as exact as float32 products to about
    1e-6; "ieee" multiplies in float32 outside the tensor cores, many times slower; "tf32" keeps 10 bits of
    each factor.

    Raises:
        ValueError: ``name`` is none of these.
    """
    global _float32
    if name not in FLOAT32_PRECISIONS:
        raise ValueError(f"precision {name!r} is unknown: choose one of {', '.join(FLOAT32_PRECISIONS)}")
    _float32 = name
