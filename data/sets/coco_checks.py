"""Check that the annotations in COCO's format agree with each other and with the images on disk."""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from ..reading.file_lists import is_inside
from ..reading.size_limit import check_size
from .coco_annotations import check_area, check_segmentation, decoded_mask

_COMPARED = 100  # number of objects, evenly spaced, whose boxes are compared with their masks
_TOLERANCE = 2  # pixels by which a box may differ from its mask, however small they are


def check_content(content: Mapping[str, Any], folder: Path, file: Path, *, scored: bool) -> None:
    """Raise an error if an image is missing or an annotation does not match the listed images and categories.

    Args:
        content: the content of an annotation file, as :func:`~ccnet.data.sets.coco_annotations.read_annotations`
            returns it.
        folder: the folder of the images.
        file: the annotation file, for the messages.
        scored: whether detections will be compared with the annotations, which needs their areas.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: an annotation refers to an image or a category that is not listed, its mask does not fit its image,
            its area is needed but missing, or most boxes do not fit their masks.
    """
    names = [image["file_name"] for image in content["images"]]
    if missing := _missing(folder, names):
        raise FileNotFoundError(
            f"{file} lists {missing[0]}, which is not in {folder} ({len(missing)} of {len(names)} images are missing)"
        )
    categories = {category["id"] for category in content["categories"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["category_id"] not in categories or annotation["image_id"] not in sizes:
            raise ValueError(
                f"{file}: annotation {annotation['id']} refers to category {annotation['category_id']} and image "
                f"{annotation['image_id']}, but the file does not list both"
            )
        if isinstance(annotation["segmentation"], dict):  # polygons are checked later, when they are drawn
            check_segmentation(annotation, sizes[annotation["image_id"]], file)
        if scored:
            check_area(annotation, file)
    _check_boxes(content["annotations"], sizes, file)


def _missing(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the relative paths in ``names`` that are not files in ``folder``, including all that point outside it."""

    @cache
    def files_in(subfolder: PurePath) -> set[str]:  # listing each folder once is far faster than checking each file
        inside = folder / subfolder
        return {entry.name for entry in os.scandir(inside)} if inside.is_dir() else set()

    paths = {name: PurePath(name) for name in names}
    return [name for name, path in paths.items() if not (is_inside(path) and path.name in files_in(path.parent))]


def _check_boxes(annotations: Sequence[dict[str, Any]], sizes: Mapping[int, tuple[int, int]], file: Path) -> None:
    """Raise ValueError if most boxes do not fit their masks, as in another format of boxes or at another scale.

    Invalid masks are left to the reading of their images.
    """
    compared = annotations[:: len(annotations) // _COMPARED + 1]
    wrong: list[str] = []
    for entry in compared:
        size = sizes[entry["image_id"]]
        try:
            check_size(*size, file)  # before a mask of that size is drawn
            bounds = _bounds(decoded_mask(entry, size, file))
        except ValueError:
            continue
        # Tools that cut images into tiles may leave polygons and boxes that reach out of a tile.
        whole = _outline(entry["segmentation"]) if bounds else None
        if not (_fits(entry["bbox"], bounds) or _fits(entry["bbox"], whole)):
            covered = f"x {bounds[0]} to {bounds[2]} and y {bounds[1]} to {bounds[3]}" if bounds else "no pixel"
            wrong.append(
                f"annotation {entry['id']} has the box {entry['bbox']}, but its mask covers {covered} of an image "
                f"of {size[1]}x{size[0]} pixels"
            )
    if 2 * len(wrong) > len(compared):
        raise ValueError(
            f"{file}: {len(wrong)} of {len(compared)} boxes that were checked do not fit their masks: {wrong[0]}. "
            "COCO's boxes are [x, y, width, height], and boxes and masks are in pixels of the image"
        )


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return x1, y1, x2, y2 of the pixels of a mask (H, W); None if there are none."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None


def _outline(segmentation: Any) -> tuple[float, float, float, float] | None:
    """Return x1, y1, x2, y2 of polygons, including what is outside the image; None for run lengths."""
    if isinstance(segmentation, dict):
        return None
    x, y = ([value for polygon in segmentation for value in polygon[axis::2]] for axis in (0, 1))
    return min(x), min(y), max(x), max(y)


def _fits(box: Sequence[float], bounds: tuple[float, float, float, float] | None) -> bool:
    """Return whether a box x, y, width, height and the bounds of its mask nearly agree or have an IoU of 0.5."""
    if bounds is None:
        return False
    x, y, width, height = box
    corners, wanted = (torch.tensor([sides], dtype=torch.float64) for sides in ((x, y, x + width, y + height), bounds))
    near = (corners - wanted).abs().max() <= _TOLERANCE
    return bool(near) or box_iou(corners, wanted).item() >= 0.5
