"""A user's own images and masks in folders, with the class names and their mask values."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from ..image_pairs import ImagePairs, PairTransform
from ..reading.file_lists import match_by_name, without_image
from ..reading.label_files import LabelFormat
from ..reading.label_values import Value, label_values
from .colours import class_colours
from .layouts import find_folders, folders_in_options
from .splits import SPLITS, check_disjoint, check_splits, divide, read_lists

Folders = str | Path | Mapping[str, Any] | None
Pair = tuple[Path, Path]  # an image and its mask


class Folder(ImagePairs):
    """Images in one folder, and their masks (label images) in another or in the same folder.

    Args:
        images: the folder of images, searched recursively; or ``{"train": DIR, "val": DIR}`` if splits have folders of
            their own.
        masks: the folder or folders of masks, with the same subfolders.
        classes: K names, or K itself; None if ``values`` contains the names.
        split: "train", "val" or "test", which are disjoint, or "all" for the images in all folders.
        val_share, test_share: the fraction of the images held out as "val" and "test"; ignored for a split with a
            folder of its own, and with ``lists``.
        transform: see :class:`~ccnet.data.image_pairs.ImagePairs`.
        values: the mask values of the classes, 0 to K - 1 by default; see
            :func:`~ccnet.data.reading.label_values.label_values`.
        palette: K RGB triples; distinct colours by default.
        ignore_label: a mask value to ignore, in addition to 255.
        image_name, mask_name: see :func:`~ccnet.data.reading.file_lists.match_by_name`.
        lists: a text file with image names for each split; see :func:`~ccnet.data.sets.splits.read_lists`.
        group: a pattern that keeps related images in the same split; see :func:`~ccnet.data.sets.splits.divide`.
        value_range, channels, rgb: see :class:`~ccnet.data.image_pairs.ImagePairs`.
    """

    def __init__(
        self,
        images: Folders,
        masks: Folders,
        *,
        classes: Sequence[str] | int | None,
        split: str,
        val_share: float,
        transform: PairTransform | None,
        test_share: float = 0.0,
        values: Sequence[Any] | Mapping[Any, Any] | str | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        ignore_label: int | None = None,
        image_name: str = "*",
        mask_name: str = "*",
        lists: Mapping[str, str] | None = None,
        group: str | None = None,
        value_range: Sequence[float] | None = None,
        channels: int = 3,
        rgb: Sequence[int] | None = None,
    ):
        own = images if isinstance(images, Mapping) else {}
        folders = [find_folders(images, masks, part) for part in (own if own and split == "all" else [split])]
        if split in ("train", "all") and not lists:
            check_disjoint(own)
        names, label_ids = label_values(values, classes, ignore_label)
        _check_palette(palette, len(names))
        self._options = images, masks, [*(own or [split])]
        self._patterns = {"image_name": image_name, "label_name": mask_name}
        self._folders = dict.fromkeys(folders)
        listed = None if split == "all" else lists
        matched = [match_by_name(*both, **self._patterns, skip_unlabelled=bool(listed)) for both in self._folders]
        pairs = [pair for found in matched for pair in found.pairs]
        unused = dict.fromkeys(mask for found in matched for mask in found.unused)
        used = {mask for _, mask in pairs} if unused else set()
        self._unused = [mask for mask in unused if mask not in used]
        if listed:
            chosen = _listed_pairs(pairs, folders[0][0], split, listed, images, masks)
        elif split == "all" or (split in own and split != "train"):
            chosen = pairs
        else:
            shares = {name: share for name, share in (("val", val_share), ("test", test_share)) if name not in own}
            parts = divide(_relative_paths(pairs, folders[0][0]), shares, group)
            chosen = _part(pairs, parts, split, f"set dataset.{split}_share, dataset.images or dataset.lists")
        super().__init__(
            chosen,
            classes=names,
            palette=palette or class_colours(names),
            label_ids=label_ids,
            result_values=_result_values(label_ids, len(names)),
            value_range=value_range,
            channels=channels,
            rgb=rgb,
            transform=transform,
        )

    @classmethod
    def label_format(
        cls,
        classes: Sequence[str],
        *,
        values: Sequence[Any] | Mapping[Any, Any] | str | None = None,
        ignore_label: int | None = None,
        image_name: str = "*",
        mask_name: str = "*",
        **options: Any,
    ) -> LabelFormat:
        """Return the format of the masks; see :meth:`~ccnet.data.image_pairs.ImagePairs.label_format`."""
        return LabelFormat(label_values(values, classes, ignore_label).label_ids, image_name, mask_name)

    def masks_without_image(self) -> list[Path]:
        """Return the masks that belong to no image, so that they are not used.

        One folder may hold the masks of several splits, whose images are in folders of their own.
        """
        images, masks, parts = self._options
        folders = dict(self._folders)
        for part in parts:
            with suppress(FileNotFoundError):  # another split, whose folder may be elsewhere
                folders[find_folders(images, masks, part)] = None
        if not self._unused or len(folders) == len(self._folders):  # searching large folders again would take seconds
            return list(self._unused)
        unused = without_image(folders, **self._patterns)
        return [path for path in unused if any(path.is_relative_to(own) for _, own in self._folders)]

    def name(self, index: int) -> str:
        """Return the path of the image in its folder without its suffix, with its parts joined by ``_``.

        If there are several folders, the name starts with the number of the folder, which keeps names unique.
        """
        path = self.pairs[index][0]
        folders = list(dict.fromkeys(images for images, _ in self._folders))
        number, folder = next(pair for pair in enumerate(folders, 1) if path.is_relative_to(pair[1]))
        parts = path.relative_to(folder).with_suffix("").parts
        return "_".join(parts if len(folders) == 1 else (str(number), *parts))


def _check_palette(palette: Sequence[Sequence[int]] | None, number: int) -> None:
    """Raise ValueError unless ``palette`` is None or has an RGB triple for each of the K classes."""
    if palette is None:
        return
    if len(palette) != number:
        raise ValueError(f"dataset.palette has {len(palette)} colours for {number} classes")
    for colour in palette:
        if len(colour) != 3 or not all(0 <= level < 256 for level in colour):
            raise ValueError(f"dataset.palette contains {list(colour)}: a colour is three numbers from 0 to 255")


def _listed_pairs(
    pairs: Sequence[Pair], folder: Path, split: str, lists: Mapping[str, str], images: Folders, masks: Folders
) -> list[Pair]:
    """Return the pairs in ``folder`` that the list of a split names."""
    if not isinstance(lists, Mapping):
        raise ValueError(f"dataset.lists={lists}: set a file for each split, as in {{train:FILE,val:FILE}}")
    check_splits("lists", lists)
    parts = read_lists(_relative_paths(pairs, folder), _sharing(images, masks, split, lists), folder)
    return _part(pairs, parts, split, "list it in dataset.lists")


def _sharing(images: Folders, masks: Folders, split: str, lists: Mapping[str, str]) -> dict[str, str]:
    """Return the lists of the splits that use the same folders as ``split``."""
    # Compared as given, because on a machine that only evaluates the folders of other splits need not exist.
    own = [*folders_in_options(images, masks, split).values()]
    return {part: file for part, file in lists.items() if [*folders_in_options(images, masks, part).values()] == own}


def _relative_paths(pairs: Sequence[Pair], folder: Path) -> list[PurePath]:
    """Return the paths of the images relative to ``folder``, without suffix."""
    return [PurePath(image.relative_to(folder).with_suffix("")) for image, _ in pairs]


def _part(pairs: Sequence[Pair], parts: Mapping[str, list[int]], split: str, how: str) -> list[Pair]:
    """Return the pairs of a split, given the indices of each; the error says ``how`` to add images to it."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: choose one of {', '.join(SPLITS)}, all")
    if not parts.get(split):
        raise ValueError(f"split={split} has no images: {how}")
    return [pairs[index] for index in parts[split]]


def _result_values(label_ids: Mapping[Value, int], number: int) -> list[int] | None:
    """Return the first value of each of the K classes; None unless all are numbers that an 8-bit image can hold."""
    first: dict[int, Value] = {}
    for value, index in label_ids.items():
        first.setdefault(index, value)
    values = [first[index] for index in range(number)]
    numbers = [value for value in values if isinstance(value, int) and value < 256]
    return numbers if len(numbers) == number else None
