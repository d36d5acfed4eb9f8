"""Average precision of detected objects, compared with pycocotools."""

import json

import numpy as np
import pytest
import torch
from coco_data import coco_root, loaded  # noqa: F401, fixture

from ccnet.engine.evaluation.average_precision import DetectionScores, average_precision, coco_results

pytest.importorskip("pycocotools", reason="the oracle of these tests: pip install -e '.[dev]'")
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def made_detections(dataset, generator):
    """Return slightly perturbed ground truth with some wrong classes and false positives."""
    outputs = []
    for index in range(len(dataset)):
        _, target = dataset[index]
        masks = (
            torch.stack(
                [torch.roll(m, tuple(generator.integers(-3, 4, 2)), (0, 1)) for m in target["masks"]]
                + [torch.zeros_like(target["masks"][0])] * 2
            )
            if len(target["labels"])
            else torch.zeros(2, *target["masks"].shape[1:], dtype=torch.uint8)
        )
        masks[-2:, 10:30, 20:45] = 1
        count = len(masks)
        labels = torch.cat([target["labels"], torch.tensor([1, 3])])
        wrong = torch.from_numpy(generator.random(count) < 0.2)
        boxes = torch.cat([target["boxes"], torch.tensor([[20.0, 10, 45, 30]] * 2)])
        outputs.append({
            "boxes": boxes + torch.from_numpy(generator.normal(0, 1.5, (count, 4))).float(),
            "labels": torch.where(wrong, labels % 3 + 1, labels),
            "scores": torch.from_numpy(generator.random(count)),
            "masks": masks[:, None].float(),
        })  # fmt: skip
    return outputs


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_pycocotools(root, seed):
    dataset = loaded(root, "train2017")
    generator = np.random.default_rng(seed)
    results = []
    for index, output in enumerate(made_detections(dataset, generator)):
        results += coco_results(output, dataset.images[index]["id"], dataset.category_ids)
    scores = average_precision(dataset.ground_truth(), results)
    assert 0.05 < scores.headline < 1

    truth = COCO(root / "annotations" / "instances_train2017.json")
    without_boxes = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    for kind, given, got in (("bbox", results, scores.box), ("segm", without_boxes, scores.mask)):
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in given]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        want = evaluation.stats[:6]
        assert np.nan_to_num(got, nan=-1) == pytest.approx(want, abs=1e-12)


def test_scores_of_perfect_and_no_detections(root):
    dataset = loaded(root)
    results = []
    for index in range(len(dataset)):
        _, target = dataset[index]
        output = target | {"scores": torch.ones(len(target["labels"])), "masks": target["masks"][:, None].float()}
        results += coco_results(output, target["image_id"].item(), dataset.category_ids)
    scores = average_precision(dataset.ground_truth(), results)
    assert scores.mask[0] == scores.box[0] == 1 and np.isnan(scores.mask[5])
    assert list(scores.summary())[:2] == ["mask_AP", "box_AP"]
    assert json.loads(json.dumps(results)) == results
    assert average_precision(dataset.ground_truth(), []).headline == 0


def test_scores_by_overlap_and_size():
    """A small object is found exactly, a medium one with an IoU of 38 / 62, and a large one is missed.

    A triangle is a false positive of the highest score: its mask is small, its box is medium.
    """
    true = [(0, 0, 10, 10), (20, 20, 70, 70), (80, 80, 180, 180)]
    annotations = [
        {
            "id": number, "image_id": 7, "category_id": 5, "iscrowd": 0, "area": (x2 - x1) * (y2 - y1),
            "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        }
        for number, (x1, y1, x2, y2) in enumerate(true, 1)
    ]  # fmt: skip
    categories = [{"id": 5, "name": "found"}, {"id": 9, "name": "absent"}]
    truth = {"images": [{"id": 7, "width": 200, "height": 200}], "categories": categories, "annotations": annotations}
    boxes = [(0, 0, 10, 10), (32, 20, 82, 70), (120, 10, 160, 50)]
    masks = torch.zeros(3, 1, 200, 200)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[0, y1:y2, x1:x2] = 0.6
    masks[2].tril_(diagonal=110)
    output = {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor([1, 1, 1]), "masks": masks}
    scores = average_precision(truth, coco_results(output | {"scores": torch.tensor([0.8, 0.7, 0.9])}, 7, [5, 9]))
    # COCO's 101 recalls, up to 2/3 with two of three detections right and up to 1/3 with one of two
    two, one = 67 / 101 * 2 / 3, 34 / 101 / 2
    wanted = [(3 * two + 7 * one) / 10, two, one]
    assert scores.mask == pytest.approx([*wanted, 0.5, 0.3, 0])
    assert scores.box == pytest.approx([*wanted, 1, 0.15, 0])
    assert scores.headline == scores.mask[0]
    assert scores.class_mask_ap == pytest.approx([wanted[0], np.nan], nan_ok=True)
    assert scores.class_box_ap == pytest.approx([wanted[0], np.nan], nan_ok=True)
    rows = scores.table(["found", "absent"]).rows
    assert rows[0] == ("found", *[pytest.approx(100 * wanted[0])] * 2)
    assert rows[-1] == ("mean", *[pytest.approx(100 * wanted[0])] * 2)
    assert scores.summary()["box_AP_medium"] == pytest.approx(15)


@pytest.mark.parametrize(("wrong", "score"), [(99, 0.01), (100, 0)])
def test_the_hundred_best_detections_of_an_image_and_class_are_scored(wrong, score):
    """The only object is found by the detection of the lowest score."""
    entry = {"id": 1, "image_id": 7, "category_id": 5, "iscrowd": 0, "area": 100, "bbox": [0, 0, 10, 10]}
    truth = {
        "images": [{"id": 7, "width": 50, "height": 50}], "categories": [{"id": 5, "name": "found"}],
        "annotations": [entry | {"segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]}],
    }  # fmt: skip
    masks = torch.zeros(wrong + 1, 1, 50, 50)
    masks[:-1, :, 30:, 30:] = masks[-1, :, :10, :10] = 1
    output = {
        "boxes": torch.tensor([[30.0, 30, 50, 50]] * wrong + [[0, 0, 10, 10]]), "masks": masks,
        "labels": torch.ones(wrong + 1, dtype=torch.int64), "scores": torch.linspace(1, 0.5, wrong + 1),
    }  # fmt: skip
    scores = average_precision(truth, coco_results(output, 7, [5]))
    assert scores.mask[0] == scores.box[0] == pytest.approx(score)


def test_without_objects_every_score_is_nan():
    assert [len(values) for values in DetectionScores.empty(3)] == [6, 6, 3, 3]
    assert np.isnan(np.concatenate(DetectionScores.empty(3))).all()
