"""COCO average precision of boxes and masks, computed by faster-coco-eval, a reimplementation of pycocotools."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as rle
from torch import Tensor

from ..drawing.tables import Table

COLUMNS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
MASK_THRESHOLD = 0.5  # probability above which a pixel belongs to an object

logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it logs every step of a scoring


class DetectionScores(NamedTuple):
    """Scores in [0, 1]; NaN where the ground truth contains no such objects.

    Attributes:
        mask, box: six scores each, in the order of ``COLUMNS``: AP averaged over the IoU thresholds 0.50 to 0.95,
            AP at 0.50 and at 0.75, and AP of small (below 32x32 pixels), medium (up to 96x96) and large objects.
        class_mask_ap, class_box_ap: the AP of each of the K classes.
    """

    mask: list[float]
    box: list[float]
    class_mask_ap: list[float]
    class_box_ap: list[float]

    @classmethod
    def empty(cls, number: int) -> "DetectionScores":
        """Return scores of NaN for `number` classes, as if there were no objects."""
        return cls(*[[math.nan] * len(COLUMNS)] * 2, *[[math.nan] * number] * 2)

    @property
    def headline(self) -> float:
        """The metric that selects the best checkpoint: mask AP."""
        return self.mask[0]

    @property
    def class_scores(self) -> list[float]:
        """The per-class scores, whose mean is the headline metric; NaN for classes excluded from the mean."""
        return self.class_mask_ap

    def summary(self) -> dict[str, float]:
        """Return {name: percentage}, with the headline metric first."""
        mask_ap, box_ap = (
            {f"{kind}_{c}": 100 * v for c, v in zip(COLUMNS, values, strict=True)}
            for kind, values in (("mask", self.mask), ("box", self.box))
        )
        return {"mask_AP": mask_ap.pop("mask_AP"), "box_AP": box_ap.pop("box_AP")} | mask_ap | box_ap

    def table(self, classes: Sequence[str]) -> Table:
        """Return a table of percentages: one row per class, then the means."""
        per_class = zip(classes, self.class_mask_ap, self.class_box_ap, strict=True)
        rows = [(name, 100 * mask_ap, 100 * box_ap) for name, mask_ap, box_ap in per_class]
        return Table(("class", "mask AP", "box AP"), [*rows, ("mean", 100 * self.mask[0], 100 * self.box[0])])


def coco_results(output: dict[str, Tensor], image_id: int, category_ids: Sequence[int | str]) -> list[dict[str, Any]]:
    """Return the detections of one image in COCO's results format.

    Args:
        output: the network's output: "boxes" (n, 4) x1, y1, x2, y2 in pixels, "labels" (n,) from 1, "scores" (n,),
            and "masks" (n, 1, H, W) in [0, 1].
        image_id: the image's id in the data set.
        category_ids: the data set's category id, or class name, of each label.

    Returns:
        n dicts of "image_id", "category_id", "bbox" (x, y, width, height), "score" and "segmentation" (compressed
        RLE).
    """
    boxes = output["boxes"].float().cpu()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
    masks = (output["masks"][:, 0] > MASK_THRESHOLD).byte().cpu().numpy()
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [round(length, 2) for length in box],
            "score": round(score, 6),
            "segmentation": _encoded(mask),
        }
        for box, label, score, mask in zip(
            boxes, output["labels"].tolist(), output["scores"].tolist(), masks, strict=True
        )
    ]


def average_precision(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> DetectionScores:
    """Score detections against the ground truth.

    Detections of crowd regions are ignored. At most the 100 highest-scoring detections per image and class are scored.

    Args:
        ground_truth: the annotations in COCO format.
        results: the detections in COCO's results format; see :func:`coco_results`.
    """
    truth = COCO(ground_truth)
    found = {
        "box": truth.loadRes([dict(result) for result in results]),
        # Without boxes, so that an object's size is the area of its mask.
        "mask": truth.loadRes([{key: value for key, value in result.items() if key != "bbox"} for result in results]),
    }
    shares = {}
    kinds: dict[str, Literal["bbox", "segm"]] = {"box": "bbox", "mask": "segm"}
    for kind, name in kinds.items():
        evaluation = COCOeval_faster(truth, found[kind], iouType=name)
        evaluation.evaluate()
        evaluation.accumulate()
        # Axes: IoU thresholds, recalls, classes, sizes (all, small, medium, large), maximum numbers of detections.
        precision = np.asarray(evaluation.eval["precision"])[..., -1]
        every = precision[..., 0]
        shares[kind] = [_mean(every), _mean(every[0]), _mean(every[5]), *(_mean(precision[..., i]) for i in (1, 2, 3))]
        shares[f"class_{kind}_ap"] = [_mean(every[:, :, index]) for index in range(every.shape[2])]
    return DetectionScores(**shares)


def _encoded(mask: np.ndarray) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(mask))
    counts = encoded["counts"]
    return {"size": list(encoded["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _mean(precision: np.ndarray) -> float:
    """Return the mean of the valid entries; COCO marks those without ground truth as -1."""
    existing = precision[precision > -1]
    return float(existing.mean()) if existing.size else float("nan")
