"""Read a whole data set and report its contents and problems."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .dataset import SegmentationDataset

_VALUES = 256  # the possible values of a uint8 label image


@dataclass
class DatasetReport:
    """The contents of a data set.

    Attributes:
        sizes: the number of images of each size (H, W).
        pixels: the number of pixels of each label value, 0 to 255.
        pixels_with: for each label value, the total number of pixels in the images that contain it.
        problems: one line per invalid sample.
    """

    sizes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(_VALUES, dtype=np.int64))
    pixels_with: np.ndarray = field(default_factory=lambda: np.zeros(_VALUES, dtype=np.int64))
    problems: list[str] = field(default_factory=list)

    def add(self, size: tuple[int, ...] | None, counts: np.ndarray, problem: str | None) -> None:
        """Count one image, or record its problem.

        Args:
            size: the image's (H, W).
            counts: the image's number of pixels of each label value.
            problem: why it cannot be used; None if it can.
        """
        if problem or size is None:
            self.problems.append(str(problem))
            return
        self.sizes[size] += 1
        self.pixels += counts
        self.pixels_with += np.where(counts > 0, counts.sum(), 0)

    def weights(self, number: int) -> np.ndarray:
        """Return median-frequency weights (K,): the median class frequency divided by each class's frequency.

        The frequency of a class is its fraction of the pixels in the images that contain it (Eigen and Fergus, ICCV
        2015). The weight of a class that does not occur is NaN.
        """
        pixels, pixels_with = self.pixels[:number], self.pixels_with[:number]
        frequency = np.where(pixels > 0, pixels / np.maximum(pixels_with, 1), np.nan)
        return np.nanmedian(frequency) / frequency if (pixels > 0).any() else frequency

    def class_rows(self, classes: Sequence[str], ignore_index: int) -> list[tuple[str, float, float, float]]:
        """Return the rows of a ``CLASS_COLUMNS`` table: one per class, and one for ignored pixels."""
        total = max(int(self.pixels.sum()), 1)
        labels = [*range(len(classes)), ignore_index]
        weights = [*self.weights(len(classes)).tolist(), float("nan")]
        return [
            (name, 100 * float(self.pixels[label]) / total, 100 * float(self.pixels_with[label]) / total, weight)
            for name, label, weight in zip([*classes, "ignored"], labels, weights, strict=True)
        ]


# Name; percentage of all pixels; percentage of all pixels that lie in images containing the class; weight.
CLASS_COLUMNS = ("class", "percent", "pictures_percent", "weight")


def inspect_dataset(dataset: SegmentationDataset, *, num_workers: int = 0, title: str = "check") -> DatasetReport:
    """Read every image and label image of a data set with ``num_workers`` processes and report what was found."""
    report = DatasetReport()
    loader = DataLoader(_Inspected(dataset), batch_size=None, num_workers=num_workers, collate_fn=_unchanged)
    for found in tqdm(loader, desc=title, dynamic_ncols=True):
        report.add(*found)
    return report


def still(array: Tensor, ndim: int = 2) -> Tensor:
    """Return an image or labels with ``ndim`` axes unchanged; of a clip, return the last frame, the labelled one."""
    return array.as_subclass(Tensor) if array.ndim == ndim else array.as_subclass(Tensor)[-1]


class _Inspected(Dataset):
    """A data set whose items are the arguments of :meth:`DatasetReport.add`."""

    def __init__(self, dataset: SegmentationDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[tuple[int, ...] | None, np.ndarray, str | None]:
        try:
            _, labels = self.dataset.read(index)
        except (ValueError, OSError) as error:
            return None, np.zeros(_VALUES, dtype=np.int64), str(error)
        labels = still(labels)
        return tuple(labels.shape), np.bincount(labels.numpy().ravel(), minlength=_VALUES), None


def _unchanged(item: Any) -> Any:
    return item
