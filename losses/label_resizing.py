"""Nearest-neighbour resizing of label images."""

from collections.abc import Sequence

from .torch_and_jax import Array, evenly_spaced


def nearest_labels(labels: Array, size: Sequence[int]) -> Array:
    """Sample labels (N, H, W) at an (h, w) grid with aligned corners, giving (N, h, w).

    With stride 8 on 769 pixels these are pixels 0, 8, ..., 768, exactly where the features of strided, padded
    convolutions are centred.
    """
    rows, columns = (evenly_spaced(side, length, labels) for side, length in zip(labels.shape[-2:], size, strict=True))
    return labels[:, rows[:, None], columns]
