"""Read the images and labels of a data set and report its contents."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from .dataset import SegmentationDataset
from .loader import Loader
from .reading.frames import frames_of
from .reading.image_files import describe
from .reading.label_files import UnknownLabels
from .reading.label_values import Value, shown_value

Track = Callable[[Any], Iterable[Any]]

_VALUES = 256  # number of possible label values, since labels are uint8
_MOST_UNKNOWN = 10_000  # limit of the undefined values counted: interpolated colour masks may have millions


class Sample(NamedTuple):
    """The result of inspecting one sample.

    Attributes:
        size: the (H, W) of the labels; None if the sample is unusable.
        kind: see :func:`kind_of`; None if there is no file or it was not read.
        pixels: the number of pixels; 0 with ``problem``.
        counts: the number of pixels of each label, int64 (256,); None if the sample is unusable.
        problem: why the sample is unusable; None if it is usable or ``unknown`` is set.
        unknown: the number of pixels of each label value that the data set does not define; None if there are none.
        name: the name of the sample if its image was read or it has unknown values.
        moments: per-channel sums of the values in [0, 1] and of their squares, (2, C); None if the image was not read.
        digest: a hash of the pixels of the image; None if it was not read.
    """

    size: tuple[int, ...] | None = None
    kind: str | None = None
    pixels: int = 0
    counts: np.ndarray | None = None
    problem: str | None = None
    unknown: dict[Value, int] | None = None
    name: str = ""
    moments: Any = None
    digest: bytes | None = None


@dataclass
class DatasetReport:
    """The contents of a data set.

    Attributes:
        sizes: the number of images of each size (H, W).
        kinds: the number of images of each bit depth and mode, such as "8-bit RGB".
        pixels: the number of pixels of each label, int64 (256,).
        pixels_with: for each label, the total number of pixels in the images that contain it, int64 (256,).
        images_with: for each label, the number of images that contain it, int64 (256,).
        problems: one line per unusable sample, excluding samples with unknown values.
        unknown: the number of pixels of each label value that the data set does not define, for the first 10,000 such
            values.
        files_with: for each value in ``unknown``, the number of samples that contain it and the name of the first one.
        invalid: the number of unusable samples, including those with unknown values.
        moments: per-channel sums of the values in [0, 1] and of their squares, (2, C); 0 if no images were read.
        images: the names of the images, by the hash of their pixels.
    """

    sizes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(_VALUES, dtype=np.int64))
    pixels_with: np.ndarray = field(default_factory=lambda: np.zeros(_VALUES, dtype=np.int64))
    images_with: np.ndarray = field(default_factory=lambda: np.zeros(_VALUES, dtype=np.int64))
    problems: list[str] = field(default_factory=list)
    unknown: Counter[Value] = field(default_factory=Counter)
    files_with: dict[Value, tuple[int, str]] = field(default_factory=dict)
    invalid: int = 0
    moments: Any = 0
    images: dict[bytes, list[str]] = field(default_factory=dict)
    _total: int = 0

    def add(self, sample: Sample) -> None:
        """Add one sample to the report."""
        if sample.kind:
            self.kinds[sample.kind] += 1
        self._total += sample.pixels
        if sample.size is not None and sample.counts is not None:
            self.sizes[sample.size] += 1
            self.pixels += sample.counts
            self.pixels_with += np.where(sample.counts > 0, sample.pixels, 0)
            self.images_with += sample.counts > 0
            if sample.moments is not None:
                self.moments = self.moments + sample.moments
            if sample.digest is not None:
                self.images.setdefault(sample.digest, []).append(sample.name)
            return
        self.invalid += 1
        if sample.unknown is None:
            self.problems.append(str(sample.problem))
            return
        for value, pixels in sample.unknown.items():
            if value in self.unknown or len(self.unknown) < _MOST_UNKNOWN:
                self.unknown[value] += pixels
                number, first = self.files_with.get(value, (0, sample.name))
                self.files_with[value] = number + 1, first

    def statistics(self) -> tuple[list[float], list[float]] | None:
        """Return the per-channel mean and standard deviation of the images in [0, 1]; None if no images were read."""
        if np.ndim(self.moments) == 0:
            return None
        mean, square = self.moments / max(int(self.pixels.sum()), 1)
        std = np.sqrt(np.maximum(square - mean**2, 0))
        return [round(float(value), 4) for value in mean], [round(float(value), 4) for value in std]

    def counts(self, number: int) -> np.ndarray:
        """Return the number of pixels of each of the K classes, int64 (K,)."""
        return self.pixels[:number]

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
        total, images = max(int(self.pixels.sum()), 1), max(self.sizes.total(), 1)
        labels = [*range(len(classes)), ignore_index]
        weights = [*self.weights(len(classes)).tolist(), float("nan")]
        return [
            (name, 100 * float(self.pixels[label]) / total, 100 * float(self.images_with[label]) / images, weight)
            for name, label, weight in zip([*classes, "ignored"], labels, weights, strict=True)
        ]

    def unknown_rows(self, most: int) -> list[tuple[str, float, int, str]]:
        """Return the rows of an ``UNKNOWN_COLUMNS`` table for the ``most`` most frequent unknown values."""
        return [
            (shown_value(value), 100 * pixels / max(self._total, 1), *self.files_with[value])
            for value, pixels in self.unknown.most_common(most)
        ]


# Class name; percentage of all pixels; percentage of images that contain the class; class weight.
CLASS_COLUMNS = ("class", "percent", "images_percent", "weight")
# Value; percentage of all pixels; number of files that contain it; name of the first of them.
UNKNOWN_COLUMNS = ("value", "percent", "files", "such as")


def inspect_dataset(
    dataset: SegmentationDataset,
    *,
    indices: Sequence[int] | None = None,
    labels_only: bool = False,
    num_workers: int = 0,
    track: Track | None = None,
) -> DatasetReport:
    """Read the samples of a data set and report its contents.

    Args:
        dataset: the data set.
        indices: the samples to read; None reads all of them.
        labels_only: whether to read only the labels.
        num_workers: the number of worker processes; 0 reads in this process.
        track: called with a loader of the inspected samples; yields the samples and shows the progress.
    """
    report = DatasetReport()
    chosen = range(len(dataset)) if indices is None else indices
    for sample in inspected(_Inspected(dataset, chosen, labels_only), num_workers, track):
        report.add(sample)
    return report


def inspected(samples: Dataset, num_workers: int, track: Track | None) -> Iterable[Any]:
    """Return the items of a data set that inspects one sample per item; see :func:`inspect_dataset`."""
    loader = Loader(samples, batch_size=None, num_workers=num_workers, collate_fn=_unchanged)
    return loader if track is None else track(loader)


def still(array: Tensor, ndim: int = 2) -> Tensor:
    """Return an array with ``ndim`` axes unchanged, or else the last frame of a clip, which is the labelled one."""
    return array.as_subclass(Tensor) if array.ndim == ndim else array.as_subclass(Tensor)[-1]


class _Inspected(Dataset):
    """Inspects the samples ``indices`` of a data set."""

    def __init__(self, dataset: SegmentationDataset, indices: Sequence[int], labels_only: bool):
        self.dataset, self.indices, self.labels_only = dataset, indices, labels_only

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Sample:  # pyrefly: ignore[bad-override-param-name]
        index, kind = self.indices[place], None
        try:
            if not self.labels_only and hasattr(self.dataset, "image_path"):
                kind = kind_of(self.dataset, index)
            image, stored = (None, self.dataset.read_labels(index)) if self.labels_only else self.dataset.read(index)
            labels, image = still(stored), None if image is None else still(image, ndim=3)
        except UnknownLabels as error:
            return Sample(kind=kind, pixels=error.total, unknown=dict(error.pixels), name=self.dataset.name(index))
        except (ValueError, OSError) as error:
            return Sample(kind=kind, problem=str(error))
        counts = np.bincount(labels.numpy().ravel(), minlength=_VALUES)
        sample = Sample(tuple(labels.shape), kind, labels.numel(), counts)
        if image is None:
            return sample
        return sample._replace(name=self.dataset.name(index), moments=_moments(image), digest=digest_of(image))


def kind_of(dataset: Any, index: int) -> str:
    """Return the bit depth and mode of an image file, and the number of its pages or frames if only the first is used.

    Args:
        dataset: a data set of image files, with ``image_path(i)`` and, unless it is 3, the number of ``channels``.
        index: the index of the image.
    """
    path, channels = dataset.image_path(index), getattr(dataset, "channels", 3)
    pages = len(frames_of(path, channels))
    return describe(path, channels) + (f", the first of {pages} pages" if pages > 1 else "")


def digest_of(image: Tensor) -> bytes:
    """Return a hash of the size and pixels of an image."""
    pixels = image.contiguous().numpy()
    return hashlib.sha1(str(pixels.shape).encode() + pixels.data, usedforsecurity=False).digest()


def _moments(image: Tensor) -> np.ndarray:
    """Return the per-channel sums of the values of a uint8 image (C, H, W), scaled to [0, 1], and of their squares."""
    values = np.arange(_VALUES) / 255
    counts = np.stack([np.bincount(channel.ravel(), minlength=_VALUES) for channel in image.numpy()])
    return np.stack([counts @ values, counts @ values**2])


def _unchanged(item: Any) -> Any:
    return item
