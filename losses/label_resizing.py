"""Labels at another size."""

from collections.abc import Sequence

from .torch_and_jax import Array, points


def nearest_labels(labels: Array, size: Sequence[int]) -> Array:
    """Sample labels (N, H, W) at (h, w) points that span the image from corner to corner.

    With a stride of 8 over 769 pixels these are pixels 0, 8, ..., 768: exactly where the features of strided,
    padded convolutions are centred.
    """
    rows, columns = (points(side, length, labels) for side, length in zip(labels.shape[-2:], size, strict=True))
    return labels[:, rows[:, None], columns]
