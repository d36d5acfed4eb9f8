"""Check whether the labels of a data set allow a network to learn every class, and whether its splits are disjoint."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from .dataset import IGNORE_INDEX
from .inspection import DatasetReport, inspect_dataset
from .transforms import swapped_classes

if TYPE_CHECKING:
    from .object_inspection import ObjectReport

# Patterns for "left" in lower-case class names, and the text that replaces it in the name of the right counterpart.
_SIDES = (("left", "right"), (r"(?<![a-z])l(?![a-z])", "r"), ("links", "rechts"), ("linke", "rechte"), ("左", "右"))
_SMOOTH = 20  # more undefined values than this may be mixtures of the values of neighbouring classes
_LOOKED_AT = 32  # masks per split that training checks before its first step; few, to start quickly


def first_look(dataset: Any, split: str, *, skip_broken: int = 0) -> list[str]:
    """Check a few evenly spaced label images of a data set; return one line per problem.

    Args:
        dataset: any data set; without pixel labels, nothing is checked.
        split: the name of the split, for the messages.
        skip_broken: the number of unreadable files that are tolerated.

    Raises:
        ValueError: the labels contain values that the data set does not define, or cannot be read.
    """
    if not getattr(dataset, "has_labels", False):
        return []
    number = min(len(dataset), _LOOKED_AT)
    indices = [index * len(dataset) // number for index in range(number)]
    report = inspect_dataset(dataset, indices=indices, labels_only=True)
    if report.unknown:
        raise ValueError(unknown_values(dataset, report, split) + "; check_data.py lists them all")
    if len(report.problems) > skip_broken:
        checked = f" ({len(report.problems)} of {number} label images that were checked)" * (len(report.problems) > 1)
        raise ValueError(f"{split}: {report.problems[0]}{checked}")
    lines = [*(f"{split}: {problem}" for problem in report.problems), *label_problems(dataset, report, split)]
    absent = [name for name, pixels in zip(dataset.classes, report.pixels, strict=False) if not pixels]
    # Unless every mask was read, classes may be missing from the few masks by chance.
    if not lines and absent and split == "train" and (number == len(dataset) or 4 * len(dataset.classes) <= number):
        lines = [f"{split}: none of {number} label images contains {', '.join(absent)}"]
    return lines


def unused_masks(datasets: Sequence[Any]) -> list[str]:
    """Return one line about the masks that belong to no image, if any; the data sets may share a folder of masks."""
    found = [path for dataset in datasets for path in getattr(dataset, "masks_without_image", list)()]
    number = len(set(found))
    return [f"masks that belong to no image and are not used: {number}, such as {found[0]}"] if found else []


def unknown_values(dataset: Any, report: DatasetReport, split: str) -> str:
    """Return a line that lists the most frequent unknown values in a report."""
    rows = report.unknown_rows(5)
    values = ", ".join(f"{value} ({share:.2f}%)" for value, share, *_ in rows)
    return f"{split}: label images such as {rows[0][3]} contain {undefined(dataset, report)}: {values}"


def undefined(dataset: Any, report: DatasetReport) -> str:
    """Describe the unknown values or colours of a report and, if their cause is a common mistake, the remedy."""
    number, ids = len(dataset.classes), _label_ids(dataset)
    if set(report.unknown) == {number} and all(ids.get(index) == index for index in range(number)):
        return (
            "values that the data set does not define; if the classes are numbered from 1, set "
            f"dataset.values=1-{number}, and dataset.ignore_label=0 if 0 means no data"
        )
    many = "; if the masks were smoothed, resized or saved as JPEG, export them again as PNG"
    hint = many * (len(report.unknown) > _SMOOTH)
    if any(isinstance(value, tuple) for value in report.unknown):
        remedy = "with dataset=folder, dataset.values maps colours to classes"
        return f"colours that the data set does not define ({remedy}){hint}"
    return f"values that the data set does not define{hint}"


def label_problems(dataset: Any, report: DatasetReport, split: str) -> list[str]:
    """Return a line if no pixel of a split has a class, or if the second of two classes seems to be stored as 255."""
    number = len(dataset.classes)
    if not report.sizes or report.pixels[:number].all():
        return []
    ids = _label_ids(dataset)
    ignored = report.pixels[IGNORE_INDEX] > 0
    if number == 2 and report.pixels[0] and ignored and ids.get(0) == 0 and ids.get(255) == IGNORE_INDEX:
        return [
            f"{split}: the label images contain only 0 and 255, and 255 is ignored, so that {dataset.classes[1]} is "
            "never learned: if 255 stands for it, set dataset.values=[0,255]"
        ]
    if not report.pixels[:number].any():
        return [f"{split}: no pixel has a class, all of them are ignored"]
    return []


def _label_ids(dataset: Any) -> Mapping[Any, int]:
    """Return the class of each value in the label images; empty if the data set does not tell."""
    return getattr(getattr(dataset, "label_reader", None), "label_ids", {})


def absent_classes(counts: Mapping[str, np.ndarray], classes: Sequence[str]) -> list[str]:
    """Return a line for classes that occur in no split, and one for those missing from "train" only.

    Args:
        counts: for each split, the number of pixels or objects of each class (K,).
        classes: the K names.
    """
    if not counts:
        return []
    occurs = {split: numbers > 0 for split, numbers in counts.items()}
    anywhere = np.asarray(np.stack([*occurs.values()]).any(axis=0))
    untrained = np.asarray(anywhere & ~occurs.get("train", anywhere))
    lines = []
    if not anywhere.all():
        lines.append(f"classes that occur nowhere in {', '.join(counts)}: {_named(classes, np.asarray(~anywhere))}")
    if untrained.any():
        lines.append(f"classes that do not occur in train and cannot be learned: {_named(classes, untrained)}")
    return lines


def differing_classes(classes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for every entry after the first whose class names or their order differ from the first one's.

    Args:
        classes: the class names of each split, or of a checkpoint, by the name to show.
    """
    (first, expected), *rest = classes.items()
    lines = []
    for name, listed in rest:
        for number, (wanted, found) in enumerate(zip_longest(expected, listed), 1):
            if wanted != found:
                lines.append(
                    f"class {number} is {wanted or 'missing'} in {first} but {found or 'missing'} in {name}: both need "
                    "the same classes in the same order, which in COCO's format is that of their ids"
                )
                break
    return lines


def unpaired_sides(classes: Sequence[str], transform: Mapping[str, Any]) -> list[str]:
    """Return a line if two classes seem to be the left and right of one thing, which mirror images mix up.

    Args:
        classes: the K names.
        transform: the options of the training transform, of which ``flip`` is the fraction of mirror images, half of
            them by default, and ``flip_pairs`` the pairs of classes that a mirror image swaps.

    Raises:
        ValueError: see :func:`~ccnet.data.transforms.swapped_classes`.
    """
    if transform.get("flip", 0.5) == 0:
        return []
    pairs = transform.get("flip_pairs") or ()
    swapped_classes(len(classes), pairs)  # the transform accepts any label of an 8-bit image
    names = [str(name).lower() for name in classes]
    mirrored_pairs = {
        (index, names.index(mirrored))
        for left, right in _SIDES
        for index, name in enumerate(names)
        if (mirrored := re.sub(left, right, name)) != name and mirrored in names
    }
    missing = sorted(mirrored_pairs - {tuple(order) for pair in pairs for order in (pair, pair[::-1])})
    if not missing:
        return []
    left_class, right_class = (classes[index] for index in missing[0])
    listed = str([list(pair) for pair in missing]).replace(" ", "")
    # The transform of objects cannot swap classes, and recipes of data sets without sides have no such option.
    swap = f"dataset.flip_pairs={listed} to swap the classes as well, or " if "flip_pairs" in transform else ""
    return [
        f"train: half of the images are mirrored, which turns {left_class} into {right_class}: set {swap}"
        "++recipe.train_transform.flip=0"
    ]


def _named(classes: Sequence[str], chosen: np.ndarray) -> str:
    return ", ".join(name for name, here in zip(classes, chosen.tolist(), strict=True) if here)


def shared_images(reports: "Mapping[str, DatasetReport | ObjectReport]") -> list[str]:
    """Return one line for every two splits that contain images with the same pixels, and one for copies within "all".

    Args:
        reports: the report of each split; "all" contains the others.
    """
    lines = []
    remedy = "remove the copies; dataset=folder also has dataset.group and dataset.lists"
    splits = [(split, report.images) for split, report in reports.items() if split != "all"]
    for (split, images), (other, others) in combinations(splits, 2):
        if same := sorted(images.keys() & others.keys(), key=lambda digest: images[digest]):
            lines.append(
                f"images with the same pixels in {split} and {other}, which make scores too high: {len(same)}, such as "
                f"{images[same[0]][0]} and {others[same[0]][0]}; {remedy}"
            )
    if "all" in reports and (copies := sorted(names for names in reports["all"].images.values() if len(names) > 1)):
        first, second, *_ = copies[0]
        lines.append(
            "images with the same pixels, which make scores too high if they are in different splits: "
            f"{sum(map(len, copies))}, such as {first} and {second}; {remedy}"
        )
    return lines
