"""The size of label images: a check, and resizing by nearest neighbour."""

from collections.abc import Sequence

from .torch_and_jax import Array, evenly_spaced


def check_label_size(labels: Array, output: Array, name: str) -> None:
    """Raise ValueError unless labels (N, *S) have the size of the output ``name``, (N, channels, *S)."""
    expected = output.shape[:1] + output.shape[2:]
    if labels.shape == expected:
        return
    if labels.shape == output.shape[:-1]:
        advice = f"move the channels of the {name} to axis 1"
    elif labels.shape[:1] == expected[:1] and labels.ndim == len(expected):
        advice = "resize them with ccnet.losses.label_resizing.nearest_labels"
    else:
        advice = f"expected {tuple(expected)}"
    raise ValueError(f"labels {tuple(labels.shape)} must match the size of the {name} {tuple(output.shape)}: {advice}")


def nearest_labels(labels: Array, size: Sequence[int]) -> Array:
    """Resize labels (N, H, W), or (N, T, H, W) for clips, to (h, w) by nearest neighbour, with aligned corners.

    For 769 pixels and stride 8, this samples pixels 0, 8, ..., 768, the exact centres of the receptive fields of
    strided, padded convolutions.
    """
    rows, columns = (evenly_spaced(side, length, labels) for side, length in zip(labels.shape[-2:], size, strict=True))
    return labels[..., rows[:, None], columns]
