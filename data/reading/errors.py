"""The errors of image files that cannot be used."""


class UnreadableImage(ValueError):
    """A file that is not an image, or is truncated."""


class ImageTooLarge(ValueError):
    """An image has more pixels than the limit. ``skip_broken`` does not skip such images: the files may be intact."""
