"""Several processes that split a detection data set get the same results as a single process."""

from functools import partial

import pytest
import torch
from coco_data import write_coco
from two_processes import together

from ccnet.data.sets.coco import Coco, instances_transform
from ccnet.engine.evaluation.detection import evaluate_objects


class Finder(torch.nn.Module):
    """A network that detects every object one pixel too far right and once more elsewhere, with many tied scores."""

    def __init__(self, dataset):
        super().__init__()
        self.known = [dataset[index] for index in range(len(dataset))]
        self.images = 0

    def forward(self, images):
        (image,) = images
        self.images += 1
        target = next(target for known, target in self.known if torch.equal(known, image))
        masks = torch.cat([target["masks"].roll(1, dims=2), target["masks"].flip(2)])
        boxes = torch.cat([target["boxes"] + torch.tensor([1, 0, 1, 0]), target["boxes"] / 2])
        labels = target["labels"].repeat(2)
        scores = 1 - 0.1 * (torch.arange(len(labels)) % 4)
        return [{"boxes": boxes, "labels": labels, "scores": scores, "masks": masks[:, None].float()}]


def validated(rank=0, *, folder):
    dataset = Coco(folder, split="val2017", transform=instances_transform())
    finder = Finder(dataset)
    found = evaluate_objects(finder, dataset, device=torch.device("cpu"), keep_samples=2)
    return {
        "scores": repr(found.scores), "results": found.results, "samples": len(found.samples), "images": finder.images
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_score_exactly_like_one(tmp_path):
    write_coco(tmp_path / "data", images=3, split="val2017")  # and two without objects
    one = validated(folder=tmp_path / "data")
    assert len(one["results"]) > 10
    assert "mask=[0." in one["scores"]
    (tmp_path / "work").mkdir()
    first, second = together(partial(validated, folder=tmp_path / "data"), tmp_path / "work")
    assert first["results"] == second["results"] == one["results"]
    assert first["scores"] == second["scores"] == one["scores"]
    assert first["samples"] == second["samples"] == 2
    assert first["images"] + second["images"] == one["images"] == 5
