"""COCO, objects with boxes and masks: Lin et al., Microsoft COCO, ECCV 2014, arXiv:1405.0312. Any data set with
annotations in its format has the same layout and is read likewise.

A sample is an image, RGB float32 (3, H, W) in [0, 1], and a target for torchvision's detection networks: "boxes"
(n, 4) float32, x1, y1, x2, y2 in pixels; "labels" (n,) int64 from 1 to K; "masks" (n, H, W) uint8 in {0, 1};
"image_id", the image's number in the annotations.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as rle
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..image_files import read_image
from . import layouts
from .folder import distinct_colours


def _number(value: Any) -> bool:
    """Finite, and exact in a float."""
    return isinstance(value, (int, float)) and -(2**53) < value < 2**53


def _whole(value: Any) -> bool:
    return isinstance(value, int) and _number(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(_number(value) for value in values)


_FIELDS = {  # what is read of each list's entries
    "images": {"id": _whole, "file_name": _text, "height": _whole, "width": _whole},
    "annotations": {
        "id": _whole,
        "image_id": _whole,
        "category_id": _whole,
        "bbox": lambda value: _numbers(value) and len(value) == 4,
        "segmentation": lambda value: isinstance(value, (list, dict)),
    },
    "categories": {"id": _whole, "name": _text},
}


class Coco(Dataset):
    """Pictures and the objects in them; the categories' numbers, 1 to 90 with holes, become 1 to K in their order.

    Args:
        root: the folder with ``annotations`` and the pictures' folders.
        split: name of a folder of pictures, "train2017" or "val2017".
        transform: of (tv_tensors.Image uint8, target with tv_tensors) to the pair returned; see
            :func:`instances_transform`.
        training: leave out crowds, objects without extent, and then pictures without an object, as Mask R-CNN's
            training does. Else every picture of the split counts.
    """

    def __init__(self, root: str | Path | None, *, split: str, transform: Callable, training: bool = False):
        self.folder, self.annotation_file = layouts.COCO.find(root, split)
        self.transform, self.training = transform, training
        content = read_annotations(self.annotation_file)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = [category["id"] for category in categories]
        self.classes = tuple(category["name"] for category in categories)
        self.palette = tuple(distinct_colours(len(categories)))

        objects: dict[int, list] = {image["id"]: [] for image in content["images"]}
        self._check(content, objects)
        for annotation in content["annotations"]:
            if not training or _usable(annotation):
                objects[annotation["image_id"]].append(annotation)
        self.images = [image for image in content["images"] if not training or objects[image["id"]]]
        if not self.images:
            raise ValueError(f"{self.annotation_file} lists no {'objects' if training else 'images'} to work with")
        # As bytes: the processes that load share them, while every Python object that they read would be copied.
        self._objects = [json.dumps(objects[image["id"]]).encode() for image in self.images]

    def _check(self, content: dict, image_ids: dict) -> None:
        there = {entry.name for entry in os.scandir(self.folder)}
        missing = [image["file_name"] for image in content["images"] if image["file_name"] not in there]
        if missing:
            raise FileNotFoundError(
                f"{self.annotation_file} lists {missing[0]}, which is not in {self.folder} ({len(missing)} of "
                f"{len(content['images'])} images are missing)"
            )
        known = set(self.category_ids)
        for annotation in content["annotations"]:
            if annotation["category_id"] not in known or annotation["image_id"] not in image_ids:
                raise ValueError(
                    f"{self.annotation_file}: annotation {annotation['id']} belongs to category "
                    f"{annotation['category_id']} and image {annotation['image_id']}, and the file does not list both"
                )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        entry = self.images[index]
        path = self.folder / entry["file_name"]
        image = read_image(path)
        size = tuple(image.shape[1:])
        if size != (entry["height"], entry["width"]):
            raise ValueError(
                f"{path} has {size[1]}x{size[0]} pixels and {self.annotation_file} says "
                f"{entry['width']}x{entry['height']}: the objects would lie elsewhere"
            )
        target = self._target(json.loads(self._objects[index]), size) | {"image_id": torch.tensor(entry["id"])}
        return self.transform(tv_tensors.Image(image), target)

    def _target(self, objects: list[dict], size: tuple[int, int]) -> dict[str, Tensor]:
        boxes = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [1 + self.category_ids.index(entry["category_id"]) for entry in objects]
        masks = np.zeros((len(objects), *size), dtype=np.uint8)
        for mask, entry in zip(masks, objects, strict=True):
            _check_segmentation(entry, size, self.annotation_file)
            try:
                mask[:] = rle.decode(rle.segmToRle(entry["segmentation"], size[1], size[0]))
            except (ValueError, TypeError, RuntimeError) as error:  # run lengths that are none
                raise ValueError(f"{self.annotation_file}: annotation {entry['id']} has no mask: {error}") from error
        return {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": tv_tensors.Mask(torch.from_numpy(masks)),
        }

    def name(self, index: int) -> str:
        """File name of the picture, without suffix."""
        return Path(self.images[index]["file_name"]).stem

    def ground_truth(self) -> dict[str, Any]:
        """The annotations in COCO's own format, of this data set's images."""
        content = read_annotations(self.annotation_file)
        sizes = {image["id"]: (image["height"], image["width"]) for image in self.images}
        annotations = [entry for entry in content["annotations"] if entry["image_id"] in sizes]
        for entry in annotations:
            _check_segmentation(entry, sizes[entry["image_id"]], self.annotation_file)
            if not (_number(entry.get("area")) and _whole(entry.get("iscrowd", 0))):
                raise ValueError(
                    f"{self.annotation_file}: annotation {entry['id']} has area={entry.get('area')!r} and iscrowd="
                    f"{entry.get('iscrowd', 0)!r}: scores need the pixels of each object, and 0 or 1"
                )
        return {"images": self.images, "categories": content["categories"], "annotations": annotations}


def instances_transform(*, flip: float = 0.0) -> v2.Compose:
    """Horizontal flip of picture, boxes and masks, then RGB in [0, 1]. The network itself resizes.

    Args:
        flip: probability of the flip.
    """
    steps = [v2.RandomHorizontalFlip(flip)] if flip else []
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return v2.Compose([*steps, to_float, v2.ToPureTensor()])


def read_annotations(path: Path) -> dict[str, Any]:
    """A file of annotations in COCO's format, of which what is read here is there and of the right type."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, it may be truncated: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in _FIELDS):
        raise ValueError(f"{path} is no annotation file of COCO's format: it needs the lists {', '.join(_FIELDS)}")
    for part, fields in _FIELDS.items():
        for number, entry in enumerate(content[part]):
            if not (isinstance(entry, dict) and all(good(entry.get(name)) for name, good in fields.items())):
                raise ValueError(
                    f"{path}: entry {number} of {part} lacks one of {', '.join(fields)}, or has one of another kind "
                    f"than COCO: {str(entry)[:200]}"
                )
    return content


def _check_segmentation(annotation: dict, size: tuple[int, int], file: Path) -> None:
    """Raise ValueError for a mask that is not the picture's: its own sizes decide what decoding it would allocate."""
    given, (height, width) = annotation["segmentation"], size
    if isinstance(given, dict):
        counts = given.get("counts")
        readable = _text(counts) or (_numbers(counts) and all(_whole(count) and count >= 0 for count in counts))
        fits = readable and given.get("size") == [height, width]
    else:
        farthest = 2 * max(size)
        fits = all(_numbers(polygon) and max(map(abs, polygon), default=0) <= farthest for polygon in given)
    if not fits:
        raise ValueError(
            f"{file}: annotation {annotation['id']} has a mask that does not lie in its picture of {width}x{height} "
            f"pixels: {str(given)[:100]}"
        )


def _usable(annotation: dict) -> bool:
    return not annotation.get("iscrowd", 0) and min(annotation["bbox"][2:]) >= 1
