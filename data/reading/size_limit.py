"""A limit on the size of images that are decoded or created, because a small untrusted file may claim any size."""

import os
from collections.abc import Sequence

from .errors import ImageTooLarge

MAX_PIXELS = 2**28  # 16384 x 16384: enough for aerial images, 0.8 GB as RGB
_VARIABLE = "CCNET_MAX_IMAGE_PIXELS"


def check_size(height: int, width: int, subject: object) -> None:
    """Check that an image has at most ``CCNET_MAX_IMAGE_PIXELS`` pixels (default: ``MAX_PIXELS``).

    Args:
        height, width: the size of the image in pixels.
        subject: the file or option that has this size, for the message.

    Raises:
        ImageTooLarge: the image has more pixels.
        ValueError: a side is shorter than 1 pixel, or the environment variable is not a whole number.
    """
    setting = os.environ.get(_VARIABLE, MAX_PIXELS)  # workers inherit environment variables
    try:
        limit = int(setting)
    except ValueError:
        raise ValueError(
            f"{_VARIABLE}={setting} is not a whole number: set it to the largest number of pixels"
        ) from None
    if height < 1 or width < 1:
        raise ValueError(f"{subject} has {width}x{height} pixels: both sides must be at least 1")
    if height * width > limit:
        raise ImageTooLarge(
            f"{subject} has {width}x{height} pixels, {height * width} in all, more than the limit of {limit}: if that "
            f"is intended, raise the limit with the environment variable {_VARIABLE}={height * width}"
        )


def checked_crop_size(crop_size: Sequence[int]) -> tuple[int, int]:
    """Return the option ``crop_size`` as (H, W); raise ValueError unless it is the size of an image."""
    if len(crop_size) != 2:
        raise ValueError(f"crop_size is {list(crop_size)}: set it to [height, width]")
    height, width = crop_size
    check_size(height, width, f"crop_size={list(crop_size)}")
    return height, width
