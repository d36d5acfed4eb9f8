"""Labels at another size."""

from collections.abc import Sequence

import torch
from torch import Tensor


def nearest_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Sample labels (N, H, W) at (h, w) points that span the image from corner to corner.

    With a stride of 8 over 769 pixels these are pixels 0, 8, ..., 768: exactly where the features of strided,
    padded convolutions are centred.
    """
    for dim, length in zip((-2, -1), size, strict=True):
        points = torch.linspace(0, labels.shape[dim] - 1, length, device=labels.device, dtype=torch.float64)
        labels = labels.index_select(dim, points.round().long())
    return labels
