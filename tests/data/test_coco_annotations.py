"""Objects of a data set in COCO format: masks, boxes, labels and errors, compared with pycocotools."""

import json
import shutil

import numpy as np
import pytest
import torch
from coco_data import coco_root, loaded  # noqa: F401, fixture
from conftest import SHARED
from PIL import Image

from ccnet.data.sets.coco import instances_transform

pytest.importorskip("pycocotools", reason="the oracle of these tests: pip install -e '.[dev]'")
from pycocotools.coco import COCO

pytestmark = pytest.mark.slow


def test_masks_boxes_and_labels_equal_pycocotools(root):
    dataset = loaded(root)
    official = COCO(root / "annotations" / "instances_val2017.json")
    assert dataset.classes == ("bar", "disc", "wedge")
    assert dataset.category_ids == [1, 3, 90]
    for index, entry in enumerate(dataset.images):
        image, target = dataset[index]
        wanted = official.loadAnns(official.getAnnIds(entry["id"]))
        assert image.dtype == torch.float32 and 0.1 < image.max() <= 1
        assert image.shape[1:] == target["masks"].shape[1:]
        assert target["image_id"] == entry["id"]
        assert target["labels"].tolist() == [{1: 1, 3: 2, 90: 3}[annotation["category_id"]] for annotation in wanted]
        assert target["crowds"].tolist() == [annotation["iscrowd"] == 1 for annotation in wanted]
        assert len(target["masks"]) == len(wanted)
        for mask, box, annotation in zip(target["masks"].numpy(), target["boxes"], wanted, strict=True):
            assert np.array_equal(mask, official.annToMask(annotation))
            x, y, width, height = annotation["bbox"]
            assert box.tolist() == pytest.approx([x, y, x + width, y + height])


def test_training_skips_crowds_and_images_without_objects(root):
    everything, training_set = loaded(root, "train2017"), loaded(root, "train2017", training=True)
    assert len(everything) == 4 + 2 and len(training_set) == 4
    counts = [
        [len(dataset[index][1]["labels"]) for index in range(len(dataset))] for dataset in (everything, training_set)
    ]
    assert counts == [[3, 2, 2, 2, 0, 1], [2, 2, 2, 2]]


def test_a_flip_transforms_image_masks_and_boxes_alike(root):
    image, target = loaded(root)[0]
    mirrored, flipped = loaded(root, transform=instances_transform(flip=1.0))[0]
    assert torch.equal(mirrored, image.flip(-1))
    assert torch.equal(flipped["masks"], target["masks"].flip(-1))
    columns = flipped["masks"].any(dim=1)
    for box, seen in zip(flipped["boxes"], columns, strict=True):
        where = seen.nonzero().flatten()
        assert box[0].item() == pytest.approx(where.min().item(), abs=1)
        assert box[2].item() == pytest.approx(where.max().item() + 1, abs=1)


def test_user_errors_produce_a_single_sentence(root, tmp_path):
    broken = shutil.copytree(root, tmp_path / "broken")
    file = broken / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    with pytest.raises(FileNotFoundError, match=r"dataset\.root is not set"):
        loaded(None)

    picture = broken / "val2017" / content["images"][1]["file_name"]
    Image.new("RGB", (5, 5)).save(picture)
    with pytest.raises(ValueError, match=r"has 5x5 pixels, but .*instances_val2017\.json says 72x64"):
        loaded(broken)[1]
    picture.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lists {picture.name}, which is not in .*val2017 \(1 of 4 images"):
        loaded(broken)

    content["annotations"][0]["category_id"] = 7
    file.write_text(json.dumps(content))
    Image.new("RGB", (72, 64)).save(picture)
    with pytest.raises(ValueError, match="annotation 1 refers to category 7 and image 10, but the file does not"):
        loaded(broken)
    file.write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match="not an annotation file in COCO's format: it needs the lists"):
        loaded(broken)
    file.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON and may be truncated"):
        loaded(broken)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks annotations/instances_val2017\.json of COCO\.\nThe layout of"):
        loaded(broken)


@pytest.mark.skipif(not (SHARED / "data" / "coco_sample").is_dir(), reason="no ../shared/data/coco_sample here")
def test_real_annotations_are_read_as_by_pycocotools():
    """50 images, one of them empty, with 470 objects, 5 of which are crowds in RLE."""
    root = SHARED / "data" / "coco_sample"
    dataset = loaded(root, "train2017")
    official = COCO(root / "annotations" / "instances_train2017.json")
    assert len(dataset) == 50 and len(dataset.classes) == 80
    assert dataset.classes[0] == "person" and dataset.category_ids[-1] == 90
    assert len(loaded(root, "train2017", training=True)) == 49
    crowded = {entry["image_id"] for entry in dataset.ground_truth()["annotations"] if entry["iscrowd"]}
    for index in [i for i, entry in enumerate(dataset.images) if entry["id"] in crowded or i < 3]:
        _, target = dataset[index]
        wanted = official.loadAnns(official.getAnnIds(dataset.images[index]["id"]))
        assert len(wanted) == len(target["masks"])
        for mask, annotation in zip(target["masks"].numpy(), wanted, strict=True):
            assert np.array_equal(mask, official.annToMask(annotation))
