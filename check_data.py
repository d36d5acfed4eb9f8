"""Read a whole data set and say what is in it and what is wrong with it.

    python check_data.py dataset=camvid dataset.root=DIR
    python check_data.py dataset=cityscapes dataset.root=DIR splits=[train,val,test] num_workers=8

Prints numbers, sizes and class frequencies with median-frequency weights, and writes them as CSV beside a picture of
random samples, before and after augmentation. Exits with 1 if a file is missing, cannot be read, does not fit its
picture or holds a label value that the data set does not have; each is named.
"""

from collections import Counter
from dataclasses import dataclass, field

import hydra
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ccnet.conf import CONF
from ccnet.data.build import build_dataset
from ccnet.engine.drawing import label_images as figures
from ccnet.engine.drawing.tables import text_table, write_csv
from ccnet.engine.runtime.atomic_files import given_path
from ccnet.engine.runtime.devices import seed_everything
from ccnet.engine.sweeps.entry_point import entry_point


@dataclass
class Report:
    """What a data set holds.

    Attributes:
        sizes: (H, W) -> number of pictures.
        pixels: of each label value, 0 to 255.
        pixels_with: of all pictures in which the value occurs.
        problems: one line each.
    """

    sizes: Counter = field(default_factory=Counter)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    pixels_with: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    problems: list[str] = field(default_factory=list)

    def add(self, size: tuple[int, int] | None, counts: np.ndarray, problem: str | None) -> None:
        """Count one picture, or what is wrong with it."""
        if problem:
            self.problems.append(problem)
            return
        self.sizes[size] += 1
        self.pixels += counts
        self.pixels_with += np.where(counts > 0, counts.sum(), 0)

    def weights(self, number: int) -> np.ndarray:
        """Median-frequency weights (K,): the median of the classes' frequencies over each class's own.

        A class's frequency is its share of the pixels of those pictures in which it occurs (Eigen and Fergus, 2015).
        NaN for a class that does not occur.
        """
        pixels, pixels_with = self.pixels[:number], self.pixels_with[:number]
        frequency = np.where(pixels > 0, pixels / np.maximum(pixels_with, 1), np.nan)
        return np.nanmedian(frequency) / frequency if (pixels > 0).any() else frequency


class _Inspected(Dataset):
    """A data set whose items are what :meth:`Report.add` takes."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[tuple[int, int] | None, np.ndarray, str | None]:
        try:
            _, labels = self.dataset.read(index)
        except (ValueError, OSError) as error:
            return None, np.zeros(256, dtype=np.int64), str(error)
        labels = _still(labels)
        return tuple(labels.shape), np.bincount(labels.numpy().ravel(), minlength=256), None


def inspect(dataset: Dataset, *, num_workers: int = 0, title: str = "check") -> Report:
    """Read every picture and label file of ``dataset`` in ``num_workers`` processes."""
    report = Report()
    loader = DataLoader(_Inspected(dataset), batch_size=None, num_workers=num_workers, collate_fn=lambda item: item)
    for found in tqdm(loader, desc=title, dynamic_ncols=True):
        report.add(*found)
    return report


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="check_data")
@entry_point
def main(config: DictConfig) -> None:
    """Check the chosen splits."""
    seed_everything(config.seed)
    folder = given_path(config.output)
    wrong = []
    for split in config.splits:
        dataset = build_dataset(config.dataset, split, None)
        if not hasattr(dataset, "read"):
            raise ValueError("check_data.py reads data sets that label pixels, and this one has objects")
        report = inspect(dataset, num_workers=config.num_workers, title=split)
        print(f"\n{_summary(split, dataset, report)}")
        wrong += report.problems
        folder.mkdir(parents=True, exist_ok=True)
        if dataset.has_labels:
            rows = _class_rows(dataset, report)
            header = ("class", "percent", "pictures_percent", "weight")
            print(f"\n{text_table(header, rows)}")
            write_csv(folder / f"{split}_classes.csv", header, rows)
        if not report.problems:
            augment = instantiate(config.recipe.train_transform)
            figures.save_samples(
                folder / f"{split}_samples.png",
                [_sample(dataset, index, augment) for index in _spread(len(dataset), config.samples)],
                ("picture", "labels", "augmented", "augmented again"),
                dataset.classes,
                dataset.palette,
            )
    print(f"\ntables and samples in {folder}")
    if wrong:
        shown = "\n".join(f"  {line}" for line in wrong)
        raise ValueError(f"{len(wrong)} samples are wrong:\n{shown}")


def _summary(split: str, dataset: Dataset, report: Report) -> str:
    sizes = [f"{count} of {height}x{width}" for (height, width), count in report.sizes.most_common(3)]
    more = f" and {len(report.sizes) - 3} other sizes" if len(report.sizes) > 3 else ""
    return (
        f"{split}: {len(dataset)} samples, {len(report.problems)} of them wrong; {', '.join(sizes)}{more} (HxW); "
        f"{len(dataset.classes)} classes" + ("" if dataset.has_labels else "; no labels")
    )


def _class_rows(dataset: Dataset, report: Report) -> list[tuple[str, float, float, float]]:
    total = max(int(report.pixels.sum()), 1)
    weights = report.weights(len(dataset.classes))
    rows = [
        (name, 100 * report.pixels[index] / total, 100 * report.pixels_with[index] / total, float(weights[index]))
        for index, name in enumerate(dataset.classes)
    ]
    ignored = dataset.ignore_index
    shares = (100 * report.pixels[ignored] / total, 100 * report.pixels_with[ignored] / total)
    return [*((name, *map(float, values)) for name, *values in rows), ("ignored", *map(float, shares), float("nan"))]


def _spread(length: int, number: int) -> list[int]:
    return torch.randperm(length)[:number].sort().values.tolist()


def _sample(dataset: Dataset, index: int, augment) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """(picture (H, W, 3), labels (H, W) to draw over it or None) for each column."""
    image, labels = dataset.read(index)
    columns = [(image, None), (image, labels)]
    for _ in range(2):
        shown, drawn = augment(image, labels)
        columns.append(((shown * 255).round().to(torch.uint8), drawn))
    return [
        (_still(picture, ndim=3).permute(1, 2, 0).numpy(), None if drawn is None else _still(drawn).numpy())
        for picture, drawn in columns
    ]


def _still(x: Tensor, ndim: int = 2) -> Tensor:
    """A picture or labels as they are; of a clip, the last frame, which has the labels."""
    return x.as_subclass(Tensor) if x.ndim == ndim else x.as_subclass(Tensor)[-1]


if __name__ == "__main__":
    main()
