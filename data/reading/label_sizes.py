"""Check that label images have the size of their images."""

from collections.abc import Sequence
from pathlib import Path

from .image_files import orientation

_TURNED = (
    "; the image is turned upright as its EXIF orientation says, and the label image seems to have been drawn without: "
    "turn it in the same way, or remove the orientation from the image"
)


def check_label_size(label: Path, label_size: Sequence[int], image: Path, size: Sequence[int], channels: int) -> None:
    """Raise ValueError unless a label image has the size of its image.

    Args:
        label: the label image, for the message.
        label_size: its size (H, W).
        image: the image; the message says if it is turned upright and the label image is not.
        size: its size (H, W) as read.
        channels: the number of channels with which it was read.
    """
    if tuple(label_size) == tuple(size):
        return
    turned = tuple(label_size) == (size[1], size[0]) and orientation(image, channels) != 1
    raise ValueError(
        f"{label} has {label_size[1]}x{label_size[0]} pixels and {image} {size[1]}x{size[0]}: a label image must be "
        f"the same size as its image{_TURNED if turned else ''}"
    )
