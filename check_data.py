"""Read a whole data set and report its contents and problems.

    python check_data.py dataset=camvid dataset.root=DIR
    python check_data.py dataset=cityscapes dataset.root=DIR splits=[train,val,test] num_workers=8

Prints the number and sizes of the images and the class frequencies with median-frequency weights, and writes the latter
as CSV next to a figure of random samples before and after augmentation. Exits with code 1 if a file is missing or
unreadable, does not match its image, or contains a label value that the data set does not define; the error lists all
such files.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from ccnet import data
from ccnet.conf import CONF
from ccnet.engine import drawing, runtime
from ccnet.engine.sweeps.entry_point import entry_point

if TYPE_CHECKING:
    import numpy as np

    from ccnet.data import SegmentationDataset
    from ccnet.data.inspection import DatasetReport


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="check_data")
@entry_point
def main(config: DictConfig) -> None:
    """Check the chosen splits."""
    data.check_root(config.dataset, config.splits)
    runtime.seed_everything(config.seed)
    folder = runtime.given_path(config.output)
    problems = [problem for split in config.splits for problem in _check_split(config, split, folder)]
    print(f"\ntables and samples in {folder}")
    if problems:
        shown = "\n".join(f"  {line}" for line in problems)
        raise ValueError(f"{len(problems)} samples are invalid:\n{shown}")


def _check_split(config: DictConfig, split: str, folder: Path) -> list[str]:
    """Print and write the contents of a split; return its problems."""
    from ccnet.data.inspection import CLASS_COLUMNS, inspect_dataset

    dataset: Any = data.build_dataset(config.dataset, split, None)
    if not hasattr(dataset, "read"):
        raise ValueError("check_data.py supports data sets that label pixels, but this one is for detection")
    report = inspect_dataset(dataset, num_workers=config.num_workers, title=split)
    print(f"\n{_summary(split, dataset, report)}")
    folder.mkdir(parents=True, exist_ok=True)
    if dataset.has_labels:
        table = drawing.Table(CLASS_COLUMNS, report.class_rows(dataset.classes, dataset.ignore_index))
        print(f"\n{table.text()}")
        table.write_csv(folder / f"{split}_classes.csv")
    if not report.problems:
        _draw_samples(folder / f"{split}_samples.png", dataset, config)
    return report.problems


def _summary(split: str, dataset: "SegmentationDataset", report: "DatasetReport") -> str:
    sizes = [f"{count} of {height}x{width}" for (height, width), count in report.sizes.most_common(3)]
    more = f" and {len(report.sizes) - 3} other sizes" if len(report.sizes) > 3 else ""
    return (
        f"{split}: {len(dataset)} samples, {len(report.problems)} of them invalid; {', '.join(sizes)}{more} (HxW); "
        f"{len(dataset.classes)} classes" + ("" if dataset.has_labels else "; no labels")
    )


def _draw_samples(path: Path, dataset: "SegmentationDataset", config: DictConfig) -> None:
    import torch

    augment = instantiate(config.recipe.train_transform)
    indices = torch.randperm(len(dataset))[: config.samples].sort().values.tolist()
    rows = [_columns(dataset, index, augment) for index in indices]
    titles = ("image", "labels", "augmented", "augmented again")
    drawing.save_samples(path, rows, titles, dataset.classes, dataset.palette)


def _columns(dataset: "SegmentationDataset", index: int, augment: Any) -> "list[tuple[np.ndarray, np.ndarray | None]]":
    """Return (image (H, W, 3), labels (H, W) to draw over it or None) for each column of the sample figure."""
    import torch

    from ccnet.data.inspection import still

    image, labels = dataset.read(index)
    columns = [(image, None), (image, labels)]
    for _ in range(2):
        augmented, augmented_labels = augment(image, labels)
        columns.append(((augmented * 255).round().to(torch.uint8), augmented_labels))
    return [
        (still(picture, ndim=3).permute(1, 2, 0).numpy(), None if labels is None else still(labels).numpy())
        for picture, labels in columns
    ]


if __name__ == "__main__":
    from ccnet.check_data import main  # so that launchers pickle `main` by reference: see entry_point

    main()
