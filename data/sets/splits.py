"""Disjoint splits of a user's own images, listed in files or chosen by image or by group."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path, PurePath
from typing import Any

from ..reading.file_lists import IMAGE_SUFFIXES, composed, expanded_path, inside, read_list

SPLITS = ("train", "val", "test")


def check_splits(option: str, setting: Any) -> None:
    """Raise ValueError unless the keys of ``dataset.<option>`` are splits; only a mapping has keys to check."""
    if isinstance(setting, Mapping) and (unknown := [str(name) for name in setting if name not in SPLITS]):
        raise ValueError(f"dataset.{option} has the key {', '.join(unknown)}: its keys are {', '.join(SPLITS)}")


def check_disjoint(folders: Mapping[str, Any]) -> None:
    """Raise ValueError if the folder of a split, which is searched recursively, contains that of another.

    Args:
        folders: the folder of images of each split, or None.
    """
    real = {split: expanded_path(folder).resolve() for split, folder in folders.items() if folder}
    for (outer_split, outer), (inner_split, inner) in permutations(real.items(), 2):
        if inner.is_relative_to(outer):
            raise ValueError(
                f"dataset.images.{outer_split}={folders[outer_split]} contains dataset.images.{inner_split}="
                f"{folders[inner_split]}, so that its images would be in both splits: use separate folders, or name "
                "the images of each with dataset.lists"
            )


def read_lists(names: Sequence[PurePath], lists: Mapping[str, str | Path], folder: Path) -> dict[str, list[int]]:
    """Return the indices of the images in each list, {split: indices}, in the order of the lists.

    Args:
        names: the paths of the images relative to ``folder``, without suffix.
        lists: a text file for each split, with one path per line, relative to ``folder`` or absolute, with or without
            suffix.
        folder: the folder of the images.

    Raises:
        FileNotFoundError: a list is missing, or names an image that is not in the folder.
        ValueError: an image is listed twice.
    """
    roots = {folder.absolute(), Path(os.path.normpath(folder.absolute())), folder.resolve()}  # with ../, or via a link
    index = {composed(name): number for number, name in enumerate(names)}
    parts: dict[str, list[int]] = {}
    owner: dict[int, str] = {}
    for split, file in lists.items():
        file_path = expanded_path(file)
        if not file_path.is_file():
            raise FileNotFoundError(f"dataset.lists.{split}={file} is not a file: expected a list of image names")
        parts[split] = []
        for place, line in read_list(file_path):
            path = PurePath(line)
            path = next((path.relative_to(root) for root in roots if path.is_relative_to(root)), path)
            name = inside(folder, str(path), place).relative_to(folder)
            name = composed(name.with_suffix("") if name.suffix.lower() in IMAGE_SUFFIXES else name)
            if name not in index:
                raise FileNotFoundError(
                    f"{place}: {name} is not an image with a label image in {folder}; a list has one path per line"
                )
            if index[name] in owner:
                other = owner[index[name]]
                raise ValueError(
                    f"{place}: {name} is listed twice, so that it would count twice: remove one of the lines"
                    if other == split
                    else f"{place}: {name} is also in the list of {other}: splits must not overlap"
                )
            owner[index[name]] = split
            parts[split].append(index[name])
    return parts


def divide(names: Sequence[PurePath], shares: Mapping[str, float], group: str | None) -> dict[str, list[int]]:
    """Divide images into splits deterministically, {split: indices}; "train" gets the remaining images.

    Args:
        names: the paths of the images, in order, without suffix.
        shares: the fraction of the images in each split except "train"; splits with a fraction of 0 are omitted.
        group: a regular expression that must match in every path. Images with the same captured text, or the same match
            if the expression has no capture groups, are assigned to the same split. With None, the images of a split
            are evenly spaced over the list.

    Raises:
        ValueError: there are too few images or groups for these splits, the fractions are out of range, ``group`` is
            not a regular expression, or a path does not match it.
    """
    shares = {split: share for split, share in shares.items() if share}
    if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        settings = ", ".join(f"dataset.{split}_share={share}" for split, share in shares.items())
        raise ValueError(f"{settings}: set fractions from 0 to 1, with less than 1 in total")
    members = _groups(names, group)
    if len(members) <= len(shares):
        what = f"{len(names)} images" if group is None else f"{len(members)} groups of images"
        raise ValueError(
            f"{what} cannot be divided into {', '.join(['train', *shares])}: {len(shares) + 1} are needed. To check or "
            "evaluate all of them, choose the split 'all'"
        )
    if group is not None:
        return _by_group(members, shares, len(names))
    rest, parts = [*range(len(names))], {}
    for later, (split, share) in zip(reversed(range(len(shares))), shares.items(), strict=True):
        number = min(max(round(len(names) * share), 1), len(rest) - later - 1)  # one image for each of the others
        chosen = {int((index + 0.5) * len(rest) / number) for index in range(number)}
        parts[split] = [image for place, image in enumerate(rest) if place in chosen]
        rest = [image for place, image in enumerate(rest) if place not in chosen]
    return parts | {"train": rest}


def _groups(names: Sequence[PurePath], group: str | None) -> dict[str, list[int]]:
    """Return the indices of the images in each group; without a pattern, each image is a group of its own."""
    members: dict[str, list[int]] = {}
    try:
        pattern = re.compile(group or ".*")
    except re.error as error:
        raise ValueError(f"dataset.group={group!r} is not a regular expression: {error}") from error
    for index, name in enumerate(names):
        match = pattern.search(name.as_posix())
        if not match:
            raise ValueError(f"dataset.group={group!r} does not match {name}: it must match the path of every image")
        members.setdefault("\n".join(map(str, match.groups() or (match[0],))), []).append(index)
    return members


def _by_group(members: Mapping[str, list[int]], shares: Mapping[str, float], number: int) -> dict[str, list[int]]:
    """Assign each group, largest first, to the split furthest below its target; every split gets at least one group."""
    lacking = {split: share * number for split, share in shares.items()}
    lacking = {"train": number - sum(lacking.values())} | lacking
    parts: dict[str, list[int]] = {split: [] for split in lacking}
    # Groups of equal size are shuffled, because groups with consecutive names, such as days, tend to be similar.
    order = sorted(members, key=lambda name: (-len(members[name]), hashlib.sha256(name.encode()).digest()))
    for place, name in enumerate(order):
        empty = [split for split in lacking if not parts[split]]
        candidates = empty if len(order) - place == len(empty) else lacking
        split = max(candidates, key=lambda candidate: lacking[candidate])
        parts[split] += members[name]
        lacking[split] -= len(members[name])
    return {split: sorted(indices) for split, indices in parts.items()}
