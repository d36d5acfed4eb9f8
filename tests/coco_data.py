"""A small data set in COCO format, as files and as a fixture."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("pycocotools", reason="pycocotools is the oracle of these tests: pip install -e '.[dev]'")
from pycocotools import mask as official_mask

from ccnet.data.sets.coco import Coco, instances_transform

CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 1, "name": "bar"}, {"id": 90, "name": "wedge"}]


@pytest.fixture(name="root", scope="module")
def coco_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder, images=4, split="train2017")
    write_coco(folder, images=2, split="val2017", seed=1)
    return folder


def loaded(root, split="val2017", transform=None, **options):
    return Coco(root, split=split, transform=transform or instances_transform(), **options)


def write_coco(root, *, images: int, split: str, seed: int = 0):
    """Write a data set in COCO format with polygons, RLE masks, a crowd, an empty image and one with only a crowd."""
    generator = np.random.default_rng(seed)
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    listed, annotations = [], []
    for image_id in range(10, 10 + images + 2):
        width, height = (72, 64) if image_id % 2 else (60, 80)
        picture = Image.fromarray(generator.integers(60, 90, (height, width, 3), dtype=np.uint8))
        pen = ImageDraw.Draw(picture)
        listed.append({"id": image_id, "file_name": f"{image_id:012d}.png", "width": width, "height": height})
        for index in range(2 if image_id < 10 + images else 0):
            category = CATEGORIES[(image_id + index) % 3]["id"]
            x, y = 4 + 28 * index, int(generator.integers(4, 30))
            if category == 1:
                polygon = [x, y, x + 22, y, x + 22, y + 14, x, y + 14]
            elif category == 90:
                polygon = [x, y, x + 22, y, x, y + 24]
            else:
                angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
                polygon = (
                    np.stack([x + 11 + 11 * np.cos(angles), y + 11 + 11 * np.sin(angles)], axis=1).ravel().tolist()
                )
            pen.polygon(polygon, fill=(220, 80 + category, 40))
            encoded = official_mask.merge(official_mask.frPyObjects([polygon], height, width))
            box = official_mask.toBbox(encoded).tolist()
            segmentation = [polygon]
            if index:  # as RLE, uncompressed or compressed
                column_major = official_mask.decode(encoded).ravel(order="F")
                ends = np.flatnonzero(np.diff(np.concatenate([[0], column_major, [1 - column_major[-1]]])))
                runs = np.diff(np.concatenate([[0], ends]))
                segmentation = {"size": [height, width], "counts": runs.tolist()}
            annotations.append(_annotation(image_id, category, box, segmentation, float(official_mask.area(encoded))))
        picture.save(root / split / listed[-1]["file_name"])
    crowd = np.zeros((listed[-1]["height"], listed[-1]["width"]), dtype=np.uint8, order="F")
    crowd[:20] = 1
    runs = official_mask.encode(crowd)
    for image_id in (10, 10 + images + 1):
        size = next([entry["height"], entry["width"]] for entry in listed if entry["id"] == image_id)
        runs = official_mask.encode(np.asfortranarray(np.resize(crowd, size)))
        packed = {"size": size, "counts": runs["counts"].decode()}
        annotations.append(_annotation(image_id, 1, official_mask.toBbox(runs).tolist(), packed, 100.0, crowd=1))
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    content = {"images": listed, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return content


def _annotation(image_id, category, box, segmentation, area, crowd=0):
    return {
        "image_id": image_id, "category_id": category, "bbox": box, "segmentation": segmentation, "area": area,
        "iscrowd": crowd,
    }  # fmt: skip
