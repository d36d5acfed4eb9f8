"""A limit on the size of images that are decoded or created: a small untrusted file may claim any size."""

import os

MAX_PIXELS = 2**28  # 16384 x 16384: enough for aerial images, 0.8 GB as RGB
_VARIABLE = "CCNET_MAX_IMAGE_PIXELS"


class ImageTooLarge(ValueError):
    """An image with more pixels than the limit. ``skip_broken`` does not skip it: the file may be fine."""


def check_size(height: int, width: int, subject: object) -> None:
    """Raise ImageTooLarge if an image has more pixels than ``CCNET_MAX_IMAGE_PIXELS`` (default: ``MAX_PIXELS``).

    Args:
        height, width: in pixels; ValueError unless both are at least 1.
        subject: the file or option that has this size, for the message.
    """
    given = os.environ.get(_VARIABLE, MAX_PIXELS)  # an environment variable reaches every worker process
    try:
        limit = int(given)
    except ValueError:
        raise ValueError(f"{_VARIABLE}={given} is not a whole number: set it to the largest number of pixels") from None
    if height < 1 or width < 1:
        raise ValueError(f"{subject} has {width}x{height} pixels: both sides must be at least 1")
    if height * width > limit:
        raise ImageTooLarge(
            f"{subject} has {width}x{height} pixels, {height * width} in all, more than the limit of {limit}: if that "
            f"is intended, raise the limit with the environment variable {_VARIABLE}={height * width}"
        )
