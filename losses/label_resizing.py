"""Nearest-neighbour resizing of label images."""

from collections.abc import Sequence

from .torch_and_jax import Array, evenly_spaced


def nearest_labels(labels: Array, size: Sequence[int]) -> Array:
    """Resize labels (N, H, W) to (N, h, w) by nearest neighbour, with aligned corners.

    For 769 pixels and stride 8, this samples pixels 0, 8, ..., 768, the exact centres of the receptive fields of
    strided, padded convolutions.
    """
    rows, columns = (evenly_spaced(side, length, labels) for side, length in zip(labels.shape[-2:], size, strict=True))
    return labels[:, rows[:, None], columns]
