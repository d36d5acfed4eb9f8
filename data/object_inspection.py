"""Read the images and objects of a detection data set and report its contents."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from .inspection import Track, digest_of, inspected, kind_of
from .sets.coco import Coco


class ObjectSample(NamedTuple):
    """The result of inspecting one sample.

    Attributes:
        size: the (H, W) of the image; None if the sample is unusable.
        kind: see :func:`~ccnet.data.inspection.kind_of`; None if it cannot be read.
        labels: the labels of the objects in it, from 1 to K.
        problem: why the sample is unusable, or None.
        name: the name of the sample if its image was read.
        digest: a hash of the pixels of the image; None if it was not read.
    """

    size: tuple[int, ...] | None = None
    kind: str | None = None
    labels: Sequence[int] = ()
    problem: str | None = None
    name: str = ""
    digest: bytes | None = None


@dataclass
class ObjectReport:
    """The contents of a detection data set.

    Attributes:
        sizes: the number of images of each size (H, W).
        kinds: the number of images of each bit depth and mode, such as "8-bit RGB".
        objects: the number of objects with each label.
        images_with: the number of images that contain each label.
        problems: one line per unusable sample.
        images: the names of the images, by the hash of their pixels.
    """

    sizes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    objects: Counter[int] = field(default_factory=Counter)
    images_with: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    images: dict[bytes, list[str]] = field(default_factory=dict)

    @property
    def invalid(self) -> int:
        """The number of unusable samples."""
        return len(self.problems)

    def add(self, sample: ObjectSample) -> None:
        """Add one sample to the report."""
        if sample.kind:
            self.kinds[sample.kind] += 1
        if sample.size is None:
            self.problems.append(str(sample.problem))
            return
        self.sizes[sample.size] += 1
        self.objects.update(sample.labels)
        self.images_with.update(set(sample.labels))
        if sample.digest is not None:
            self.images.setdefault(sample.digest, []).append(sample.name)

    def counts(self, number: int) -> np.ndarray:
        """Return the number of objects of each of the K classes, int64 (K,)."""
        return np.array([self.objects[label] for label in range(1, number + 1)], dtype=np.int64)

    def class_rows(self, classes: Sequence[str]) -> list[tuple[str, int, int]]:
        """Return the rows of an ``OBJECT_COLUMNS`` table: one per class."""
        return [(name, self.objects[label], self.images_with[label]) for label, name in enumerate(classes, 1)]


OBJECT_COLUMNS = ("class", "objects", "images")


def inspect_objects(dataset: Coco, *, num_workers: int = 0, track: Track | None = None) -> ObjectReport:
    """Read every image and its objects and report the contents; see :func:`~ccnet.data.inspection.inspect_dataset`."""
    report = ObjectReport()
    for sample in inspected(_Inspected(dataset), num_workers, track):
        report.add(sample)
    return report


class _Inspected(Dataset):
    """Inspects the samples of a data set."""

    def __init__(self, dataset: Coco):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> ObjectSample:
        kind = None
        try:
            kind = kind_of(self.dataset, index)
            image, target = self.dataset[index]
        except (ValueError, OSError) as error:
            return ObjectSample(kind=kind, problem=str(error))
        name, digest = self.dataset.name(index), digest_of(image)
        return ObjectSample(tuple(image.shape[-2:]), kind, target["labels"].tolist(), name=name, digest=digest)
