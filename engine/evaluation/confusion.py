"""Semantic segmentation scores, all computed from one confusion matrix."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..drawing.tables import Table


class Scores(NamedTuple):
    """Scores in [0, 1]; NaN for classes that do not occur, which are excluded from the means.

    Attributes:
        miou: the mean of `class_iou`.
        pixel_accuracy: the fraction of valid pixels classified correctly.
        mean_accuracy: the mean of `class_accuracy`.
        class_iou: the intersection over union of each of the K classes.
        class_accuracy: the fraction of each class's pixels that are classified correctly.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    class_iou: list[float]
    class_accuracy: list[float]

    @classmethod
    def empty(cls, number: int) -> "Scores":
        """Return scores of NaN for `number` classes, as if no pixel had been counted."""
        return cls(math.nan, math.nan, math.nan, [math.nan] * number, [math.nan] * number)

    @property
    def headline(self) -> float:
        """The metric that selects the best checkpoint: mIoU."""
        return self.miou

    @property
    def class_scores(self) -> list[float]:
        """The per-class scores, whose mean is the headline metric; NaN for classes excluded from the mean."""
        return self.class_iou

    def summary(self) -> dict[str, float]:
        """Return {name: percentage}, with the headline metric first."""
        return {
            "mIoU": 100 * self.miou,
            "pixel_acc": 100 * self.pixel_accuracy,
            "mean_acc": 100 * self.mean_accuracy,
        }

    def table(self, classes: Sequence[str]) -> Table:
        """Return a table of percentages: one row per class, then the means; NaN for classes that do not occur."""
        per_class = zip(classes, self.class_iou, self.class_accuracy, strict=True)
        rows = [(name, 100 * iou, 100 * accuracy) for name, iou, accuracy in per_class]
        return Table(("class", "IoU", "accuracy"), [*rows, ("mean", 100 * self.miou, 100 * self.mean_accuracy)])


class ConfusionMatrix:
    """Pixel counts by true and predicted class, exact in int64.

    Args:
        num_classes: the number of classes, K.
        ignore_index: the label of pixels that are not counted.
        device: the device that holds the counts; nothing is copied to the host before :meth:`scores`.
    """

    def __init__(self, num_classes: int, *, ignore_index: int = 255, device: torch.device | str = "cpu"):
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Add the pixel counts of a prediction and its labels, integers of any dtype and of the same shape.

        Raises:
            ValueError: the shapes differ, a label is neither a class nor ``ignore_index``, or a prediction is no class.
        """
        if prediction.shape != labels.shape:
            raise ValueError(
                f"the prediction has the shape {tuple(prediction.shape)} and its labels {tuple(labels.shape)}: pass "
                "the class of every pixel, such as logits.argmax(1)"
            )
        cells = self.counts.numel()
        index = labels.long() * self.num_classes + prediction  # uint8 would overflow
        index.masked_fill_(self._foreign(labels) | self._foreign(prediction), cells + 1)
        index.masked_fill_(labels == self.ignore_index, cells)  # selecting the others would take three times as long
        counts = torch.bincount(index.flatten(), minlength=cells + 1)
        if len(counts) > cells + 1:
            valid = labels != self.ignore_index
            ignored = f", or {self.ignore_index} for pixels that are not counted"
            named = ("labels contain", labels[valid], ignored), ("prediction contains", prediction[valid], "")
            source, values, otherwise = named[0] if self._foreign(labels[valid]).any() else named[1]
            foreign = values[self._foreign(values)].unique().tolist()
            raise ValueError(
                f"the {source} {', '.join(map(str, foreign[:5]))}: expected classes from 0 to {self.num_classes - 1}"
                f"{otherwise}"
            )
        self.counts += counts[:cells].view_as(self.counts)

    def _foreign(self, values: Tensor) -> Tensor:
        """Return a mask of the values that are not classes."""
        return (values < 0) | (values >= self.num_classes)

    def reduce(self) -> None:
        """Sum the counts over all processes."""
        if dist.is_initialized():
            dist.all_reduce(self.counts)

    def scores(self) -> Scores:
        """Return the scores over all pixels counted so far."""
        counts = self.counts.cpu().double()  # Apple GPUs have no float64
        hits, true, predicted = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
        iou = hits / (true + predicted - hits)  # 0 / 0 is NaN, for a class that does not occur
        accuracy = hits / true
        return Scores(
            miou=iou.nanmean().item(),
            pixel_accuracy=(hits.sum() / counts.sum()).item(),
            mean_accuracy=accuracy.nanmean().item(),
            class_iou=iou.tolist(),
            class_accuracy=accuracy.tolist(),
        )
