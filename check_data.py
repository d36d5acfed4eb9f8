"""Read a whole data set and report its contents and problems.

    python check_data.py dataset=camvid dataset.root=DIR
    python check_data.py dataset=cityscapes dataset.root=DIR splits=[train,val,test] num_workers=8
    python check_data.py dataset=folder dataset.images=DIR dataset.masks=DIR dataset.classes=2 splits=[all]

For each split, prints the number, sizes and bit depths of the images, and a table of the class frequencies with
median-frequency weights or, for detection, of the number of objects of each class. Writes the table as CSV, with a
figure of random samples before and after augmentation. Notes masks without an image, photos that are turned upright,
and images with the same pixels. Exits with code 1 if a file is missing, unreadable or does not match its image, if
labels contain values that the data set does not define, if a class or a split has no pixels, or if masks appear to use
255 as a class.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig

from ccnet import data
from ccnet.engine import drawing, guards, runtime
from ccnet.engine.commands.entry_point import entry_point

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from ccnet.data.inspection import DatasetReport, Track
    from ccnet.data.object_inspection import ObjectReport


_MOST_VALUES = 30  # maximum number of rows in the table of undefined label values


@entry_point("check_data")
def main(config: DictConfig) -> None:
    """Check the chosen splits."""
    splits = guards.as_list(config.splits)
    if not splits:
        raise ValueError("splits is empty: name the splits to check, such as splits=[train,val]")
    data.check_root(config.dataset, splits)
    guards.check_settings({name: guards.plain(config[name]) for name in ("dataset", "recipe")})
    runtime.seed_everything(config.seed)
    folder = runtime.given_path(config.output)
    if runtime.holds_run(folder):
        raise ValueError(f"output={folder} holds a training run, whose tables would be replaced: set output=FOLDER")
    datasets = {split: data.build_dataset(config.dataset, split, None) for split in splits}  # all, before any is read
    with runtime.FolderLock(folder, "output"):
        # Remove the files of an earlier run, which may have checked other splits or another data set.
        for split in dict.fromkeys([*splits, *map(str, config.dataset)]):
            for name in _files(folder, split):
                name.unlink(missing_ok=True)
        reports = {split: _check_split(config, split, dataset, folder) for split, dataset in datasets.items()}

    from ccnet.data.label_checks import absent_classes, differing_classes, shared_images

    problems = [line for split, report in reports.items() for line in _problems(split, datasets[split], report)]
    classes = {split: dataset.classes for split, dataset in datasets.items()}
    counts = {
        split: report.counts(len(classes[split]))
        for split, report in reports.items()
        if getattr(datasets[split], "has_labels", True) and report.sizes
    }
    problems += differing_classes(classes) or absent_classes(counts, next(iter(classes.values())))
    for note in shared_images(reports):
        print(f"\nnote: {note}")
    print(f"\ntables and samples in {folder}")
    if problems:
        shown = "\n".join(f"  {line}" for line in problems)
        raise ValueError(f"this data set has problems ({len(problems)}):\n{shown}")


def _files(folder: Path, split: str) -> tuple[Path, Path]:
    """Return the paths of a split's table and sample figure."""
    return folder / f"{split}_classes.csv", folder / f"{split}_samples.png"


def _check_split(config: DictConfig, split: str, dataset: Any, folder: Path) -> "DatasetReport | ObjectReport":
    """Print a summary of a split, write its table and samples, and return its report."""
    from ccnet.data.label_checks import unpaired_sides, unused_masks

    sides = unpaired_sides(dataset.classes, config.recipe.train_transform)  # raises ValueError before anything is read
    labelled = hasattr(dataset, "read_labels")
    report, table = _inspect_labels(config, split, dataset) if labelled else _inspect_objects(config, split, dataset)
    table_path, samples_path = _files(folder, split)
    print(f"\n{_summary(split, dataset, report)}")
    if labelled and (found := cast(Any, report).statistics()):
        mean, std = (",".join(map(str, values)) for values in found)
        print(f"statistics of the channels: backbone.mean=[{mean}] backbone.std=[{std}]")
        if config.dataset.get("value_range") is None and _nearly_black(found[0], report.kinds):
            print(
                "note: images of more than 8 bits are nearly black when scaled by their full range: set "
                "dataset.value_range=[BLACK,WHITE] to the range of their values, such as [0,4095] for 12 bits"
            )
    for line in unused_masks([dataset]):
        print(f"note: {line}")
    if sides and split in ("train", "all"):
        print(f"note: {sides[0]}")
    if table:
        print(f"\n{table.text()}")
        table.write_csv(table_path)
    if config.samples > 0 and not report.invalid:
        _draw_samples(samples_path, dataset, config)
    return report


def _nearly_black(mean: "Sequence[float]", kinds: "Iterable[str]") -> bool:
    """Return whether grey images or arrays of more than 8 bits seem to use only the lowest 12 of 16 bits."""
    deep = any(not kind.startswith("8-bit") and kind.partition(" ")[2].startswith(("I", "array")) for kind in kinds)
    return deep and max(mean) < 1 / 16


def _inspect_labels(config: DictConfig, split: str, dataset: Any) -> "tuple[DatasetReport, drawing.Table | None]":
    from ccnet.data.inspection import CLASS_COLUMNS, inspect_dataset

    report = inspect_dataset(dataset, num_workers=config.num_workers, track=_track(split))
    rows = report.class_rows(dataset.classes, dataset.ignore_index)
    return report, drawing.Table(CLASS_COLUMNS, rows) if dataset.has_labels else None


def _inspect_objects(config: DictConfig, split: str, dataset: Any) -> "tuple[ObjectReport, drawing.Table]":
    from ccnet.data.object_inspection import OBJECT_COLUMNS, inspect_objects

    report = inspect_objects(dataset, num_workers=config.num_workers, track=_track(split))
    return report, drawing.Table(OBJECT_COLUMNS, report.class_rows(dataset.classes))


def _track(split: str) -> "Track":
    """Return a function that shows the progress of the check of a split."""
    return lambda samples: runtime.tracked(samples, split, f"{split}: checked image")


def _problems(split: str, dataset: Any, report: Any) -> list[str]:
    """Return one entry per problem; the entry for undefined label values contains a table of them."""
    from ccnet.data.inspection import UNKNOWN_COLUMNS
    from ccnet.data.label_checks import label_problems, undefined

    lines = [f"{split}: {line}" for line in report.problems]
    if not hasattr(dataset, "read_labels"):
        return lines
    if report.unknown:
        table = drawing.Table(UNKNOWN_COLUMNS, report.unknown_rows(_MOST_VALUES)).text()
        more = len(report.unknown) - _MOST_VALUES
        table += f"\nand {more} more" if more > 0 else ""
        lines.append(f"{split}: label images contain {undefined(dataset, report)}:\n{table}".replace("\n", "\n    "))
    return lines + (label_problems(dataset, report, split) if dataset.has_labels else [])


def _summary(split: str, dataset: Any, report: "DatasetReport | ObjectReport") -> str:
    sizes = [f"{count} of {height}x{width}" for (height, width), count in report.sizes.most_common(3)]
    more = f" and {len(report.sizes) - 3} other sizes" if len(report.sizes) > 3 else ""
    shown = f"; {', '.join(sizes)}{more} (HxW)" if sizes else ""
    kinds = "".join(f"; {count} of {kind}" for kind, count in report.kinds.most_common())
    return (
        f"{split}: {len(dataset)} samples, {report.invalid} of them invalid{shown}{kinds}; "
        f"{len(dataset.classes)} classes" + ("" if getattr(dataset, "has_labels", True) else "; no labels")
    )


def _draw_samples(path: Path, dataset: Any, config: DictConfig) -> None:
    import torch

    augment = instantiate(config.recipe.train_transform)
    indices = torch.randperm(len(dataset))[: config.samples].sort().values.tolist()
    if hasattr(dataset, "read_labels"):
        columns, titles = _label_columns, ("image", "labels", "augmented image", "augmented labels")
    else:
        columns, titles = _object_columns, ("image", "objects", "augmented", "augmented again")
    rows = [columns(dataset, index, augment) for index in indices]
    drawing.save_samples(path, rows, titles, dataset.classes, dataset.palette)


def _label_columns(dataset: Any, index: int, augment: Any) -> "list[np.ndarray]":
    """Return an image (H, W, 3) and its labels (H, W), before and after augmentation."""
    import torch

    from ccnet.data.inspection import still
    from ccnet.data.reading.bands import drawn_channels
    from ccnet.data.transforms import as_float

    image, labels = dataset.read(index)
    augmented, augmented_labels = augment(image, labels)
    pixels = (as_float(augmented) * 255).round().to(torch.uint8)
    columns = []
    for picture, drawn in ((image, labels), (pixels, augmented_labels)):
        rgb = drawn_channels(still(picture, ndim=3), getattr(dataset, "rgb", None))
        columns += [rgb.permute(1, 2, 0).numpy(), still(drawn).numpy()]
    return columns


def _object_columns(dataset: Any, index: int, augment: Any) -> "list[np.ndarray]":
    """Return four images (H, W, 3): as stored, with its objects drawn, and twice augmented with the objects drawn."""
    import torch

    from ccnet.data.reading.bands import drawn_channels

    image, target = dataset[index]
    drawn = drawn_channels(image, dataset.rgb)
    pictures = [drawn, drawing.draw_objects(drawn, target, dataset.classes)]
    for _ in range(2):
        augmented, objects = augment(image, target)
        pixels = drawn_channels((augmented * 255).round().to(torch.uint8), dataset.rgb)
        pictures.append(drawing.draw_objects(pixels, objects, dataset.classes))
    return [picture.as_subclass(torch.Tensor).permute(1, 2, 0).numpy() for picture in pictures]


if __name__ == "__main__":
    import ccnet.check_data  # so that launchers pickle `main` by reference: see entry_point

    ccnet.check_data.main()
