"""Average precision of detected objects, compared with pycocotools."""

import json

import numpy as np
import pytest
import torch
from coco_data import coco_root, loaded  # noqa: F401, fixture

from ccnet.engine.evaluation.average_precision import average_precision, coco_results

pytest.importorskip("pycocotools", reason="the oracle of these tests: pip install -e '.[dev]'")
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

pytestmark = pytest.mark.slow


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
