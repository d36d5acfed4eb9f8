"""COCO, images of objects with boxes and masks: Lin et al., Microsoft COCO, ECCV 2014, arXiv:1405.0312.

Any data set with COCO's layout and annotation format can be read.
"""

import json
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..contents import with_sizes
from ..reading.bands import check_channels
from ..reading.grey_levels import check_value_range
from ..reading.image_files import orientation, read_image
from . import layouts
from .coco_annotations import check_area, check_segmentation, decoded_mask, has_mask, read_annotations
from .coco_checks import check_content
from .colours import distinct_colours

_TURNED = (
    "; the image is turned upright as its EXIF orientation says, and the annotations seem to have been drawn without: "
    "remove the orientation from the image"
)


class Coco(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images and their objects; category ids (1 to 90 with gaps in COCO) are mapped to labels 1 to K in order.

    A sample is an image, float32 (C, H, W) in [0, 1] after :func:`instances_transform`, and a target for torchvision's
    detection networks: "boxes" (n, 4), float32 x1, y1, x2, y2 in pixels; "labels" (n,), int64 from 1 to K; "masks"
    (n, H, W), uint8 in {0, 1}; "crowds" (n,), bool; "image_id", the id of the image in the annotation file.

    Args:
        root: the folder that contains ``annotations`` and the image folders.
        split: the name of an image folder, such as "train2017" or "val2017".
        transform: maps a uint8 tv_tensors.Image and a target with tv_tensors to a sample, such as
            :func:`instances_transform`; None returns them unchanged.
        training: whether to skip crowds, objects whose box is less than a pixel wide or high, and images left without
            objects, as in the training of Mask R-CNN, and objects whose mask covers no pixel. Objects without a mask
            are always skipped.
        value_range, channels, rgb: see :class:`~ccnet.data.image_pairs.ImagePairs`.
    """

    def __init__(
        self,
        root: str | Path | None,
        *,
        split: str,
        transform: Callable[..., Any] | None,
        training: bool = False,
        value_range: Sequence[float] | None = None,
        channels: int = 3,
        rgb: Sequence[int] | None = None,
    ):
        self.folder, self.annotation_file = layouts.COCO.find(root, split)
        self.transform, self.training = transform, training
        check_value_range(value_range)
        check_channels(channels, rgb)
        self.channels, self.rgb = channels, rgb and list(rgb)
        self.value_range = value_range and tuple(value_range)
        content = self._annotations()
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = [category["id"] for category in categories]
        self.classes = tuple(category["name"] for category in categories)
        self.palette = tuple(distinct_colours(len(categories)))

        objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        check_content(content, self.folder, self.annotation_file, scored=not training)
        for annotation in content["annotations"]:
            if not training or _usable(annotation):
                objects[annotation["image_id"]].append(annotation)
        self.images = [image for image in content["images"] if not training or objects[image["id"]]]
        if all(annotation.get("iscrowd") for annotation in content["annotations"]) or not self.images:
            raise ValueError(
                f"{self.annotation_file} lists no objects to {'train on' if training else 'score'}: crowds"
                f"{' and boxes of less than a pixel' if training else ''} do not count"
            )
        # Forked workers share bytes; Python objects would be copied as their reference counts change.
        self._objects = [json.dumps(objects[image["id"]]).encode() for image in self.images]

    def _annotations(self) -> dict[str, Any]:
        """Return the contents of the annotation file, excluding objects without a mask."""
        content = read_annotations(self.annotation_file)
        without = [annotation["id"] for annotation in content["annotations"] if not has_mask(annotation)]
        if without:
            warnings.warn(
                f"{self.annotation_file}: skipping {len(without)} objects with an empty segmentation (no polygon has "
                f"three points), annotations "
                f"{', '.join(map(str, without[:5]))}{', ...' if len(without) > 5 else ''}",
                stacklevel=3,
            )
            content["annotations"] = [annotation for annotation in content["annotations"] if has_mask(annotation)]
        return content

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        entry, path = self.images[index], self.image_path(index)
        image = read_image(path, self.value_range, self.channels)
        size = image.shape[1], image.shape[2]
        if size != (entry["height"], entry["width"]):
            turned = (entry["width"], entry["height"]) == size and orientation(path, self.channels) != 1
            raise ValueError(
                f"{path} has {size[1]}x{size[0]} pixels, but {self.annotation_file} says "
                f"{entry['width']}x{entry['height']}: the annotations would not match the image"
                f"{_TURNED if turned else ''}"
            )
        target = self._target(json.loads(self._objects[index]), size) | {"image_id": torch.tensor(entry["id"])}
        sample = tv_tensors.Image(image), target
        return self.transform(*sample) if self.transform else sample

    def _target(self, objects: list[dict[str, Any]], size: tuple[int, int]) -> dict[str, Tensor]:
        boxes = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        crowds = [bool(entry.get("iscrowd")) for entry in objects]
        labels = [1 + self.category_ids.index(entry["category_id"]) for entry in objects]
        masks = np.zeros((len(objects), *size), dtype=np.uint8)
        for mask, entry in zip(masks, objects, strict=True):
            mask[:] = decoded_mask(entry, size, self.annotation_file)
        kept = torch.from_numpy(masks.any(axis=(1, 2)) if self.training else np.ones(len(objects), dtype=bool))
        return {
            "boxes": tv_tensors.BoundingBoxes(boxes[kept], format="XYXY", canvas_size=size),  # pyrefly: ignore[unexpected-keyword]
            "labels": torch.tensor(labels, dtype=torch.int64)[kept],
            "masks": tv_tensors.Mask(torch.from_numpy(masks)[kept]),
            "crowds": torch.tensor(crowds, dtype=torch.bool)[kept],
        }

    def name(self, index: int) -> str:
        """Return the relative path of the image without its suffix, with its parts joined by ``_``."""
        return "_".join(PurePath(self.images[index]["file_name"]).with_suffix("").parts)

    def image_path(self, index: int) -> Path:
        """Return the path of the image."""
        return self.folder / self.images[index]["file_name"]

    def stamp(self, index: int) -> str:
        """Return the name of the image, the size of its file, and a checksum of its objects."""
        return f"{with_sizes(self.name(index), [self.image_path(index)])} {zlib.crc32(self._objects[index])}"

    def ground_truth(self) -> dict[str, Any]:
        """Return the annotations of this data set's images in COCO's format, for COCO's metrics.

        Their ids are renumbered from 1: the metrics would count an object with id 0 as missed and deduplicate ids.

        Raises:
            ValueError: an annotation cannot be scored.
        """
        content = self._annotations()
        sizes = {image["id"]: (image["height"], image["width"]) for image in self.images}
        annotations = [entry for entry in content["annotations"] if entry["image_id"] in sizes]
        for entry in annotations:
            check_segmentation(entry, sizes[entry["image_id"]], self.annotation_file)
            check_area(entry, self.annotation_file)
        numbered = [entry | {"id": number} for number, entry in enumerate(annotations, 1)]
        return {"images": self.images, "categories": content["categories"], "annotations": numbered}


def instances_transform(*, flip: float = 0.0) -> v2.Compose:
    """Return a transform that flips images, boxes and masks at random and scales images to [0, 1].

    Resizing is left to the network.

    Args:
        flip: the probability of a horizontal flip.
    """
    steps: list[Callable] = [v2.RandomHorizontalFlip(flip)] if flip else []
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return v2.Compose([*steps, to_float, v2.ToPureTensor()])


def _usable(annotation: dict[str, Any]) -> bool:
    """Return whether an annotation is not a crowd and its box is at least one pixel wide and high."""
    return not annotation.get("iscrowd", 0) and min(annotation["bbox"][2:]) >= 1
