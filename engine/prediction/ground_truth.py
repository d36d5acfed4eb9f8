"""Read the ground truth of the input images, for a comparison, from a folder of label images."""

from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from ...data.reading.file_lists import LABEL_SUFFIXES, around_star, composed, find_files
from ...data.reading.label_files import LabelFormat, LabelReader, check_label_size
from .inputs import InputImage


class GroundTruth:
    """The label images of the input images.

    Args:
        images: the input images.
        folder: the folder of the label images.
        stored: the format of the label images, which is that of the network's training data.
        channels: the network's number of input channels.

    Raises:
        FileNotFoundError: an image has no label image.
    """

    def __init__(self, images: Sequence[InputImage], folder: Path, stored: LabelFormat, channels: int):
        self._images, self._channels = images, channels
        self._paths = find_labels(images, folder, image_name=stored.image_name, label_name=stored.label_name)
        self._read = LabelReader(stored.label_ids, stored.smoothed)

    def of(self, index: int, size: Sequence[int]) -> np.ndarray:
        """Return the class indices (H, W) of image `index`; raise ValueError unless they have the image's `size`."""
        labels = self._read(self._paths[index]).numpy()
        check_label_size(self._paths[index], labels.shape, self._images[index].path, size, self._channels)
        return labels


def find_labels(
    images: Sequence[InputImage], folder: Path, *, image_name: str = "*", label_name: str = "*"
) -> list[Path]:
    """Return the label image of each image.

    Args:
        images: the images.
        folder: the folder of the label images, which need not have the subfolders of the images.
        image_name, label_name: see :func:`~ccnet.data.reading.file_lists.match_by_name`.

    Raises:
        FileNotFoundError: an image has no label image.
        ValueError: two images would have the same one, or one image could have two.
    """
    there: dict[PurePath, list[Path]] = {}
    for path in find_files(folder, LABEL_SUFFIXES):
        there.setdefault(composed(path.relative_to(folder).with_suffix("")), []).append(path)
    before, after = around_star(image_name, "images")
    label_before, label_after = around_star(label_name, "label images")
    image_of: dict[Path, InputImage] = {}
    for image in images:
        name = composed(image.name)
        expected = name.with_name(label_before + name.name.removeprefix(before).removesuffix(after) + label_after)
        names = (expected, PurePath(expected.name), name)
        paths = next((there[name] for name in names if name in there), [])
        if not paths:
            raise FileNotFoundError(
                f"labels={folder} has no label image {expected} ({', '.join(LABEL_SUFFIXES)}) for {image}"
            )
        path, *others = paths
        if others:
            raise ValueError(f"both {path} and {others[0]} could be the label image of {image}: remove one of them")
        if path in image_of:
            raise ValueError(
                f"{path} would be the label image of both {image_of[path]} and {image}: put the label images into "
                "subfolders like those of the images"
            )
        image_of[path] = image
    return [*image_of]
