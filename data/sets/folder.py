"""Anybody's own pictures and masks: two folders and the classes."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

from ..dataset import IGNORE_INDEX
from ..file_lists import match_by_stem
from ..image_pairs import ImagePairs, PairTransform
from .layouts import find_folders


class Folder(ImagePairs):
    """Pictures in one folder, label images (.png) of the same names in another.

    A label image holds a class number from 0 to K - 1 per pixel (255 is ignored), as grey values or as indices
    into a palette.

    Args:
        images: folder of pictures, searched with its subfolders.
        masks: folder of label images, with the same subfolders.
        classes: K names, or K itself.
        palette: K RGB triples; distinct colours if not given.
        ignore_label: a further value in the label images that does not count.
        split: "train" or "val", two parts of the pictures; or "all".
        val_share: share of the pictures, evenly spread over their sorted names, that is "val".
        transform: see :class:`data.pairs.ImagePairs`.
    """

    def __init__(
        self,
        images: str | Path | None,
        masks: str | Path | None,
        *,
        classes: Sequence[str] | int | None,
        split: str,
        val_share: float,
        transform: PairTransform,
        palette: Sequence[Sequence[int]] | None = None,
        ignore_label: int | None = None,
    ):
        folders = find_folders(images, masks)
        if classes is None:
            raise ValueError("dataset.classes is not set: give dataset.classes=[NAME,NAME,...] or their number")
        names = [f"class {index}" for index in range(classes)] if isinstance(classes, int) else list(classes)
        if not 2 <= len(names) <= 254:
            raise ValueError(f"dataset.classes gives {len(names)} classes: give 2 to 254, as names or as a count")
        if palette is not None and len(palette) != len(names):
            raise ValueError(f"dataset.palette has {len(palette)} colours for {len(names)} classes")
        label_ids = {index: index for index in range(len(names))} | {IGNORE_INDEX: IGNORE_INDEX}
        if ignore_label is not None:
            label_ids[ignore_label] = IGNORE_INDEX
        super().__init__(
            _split(match_by_stem(*folders), split, val_share),
            classes=names,
            palette=palette or distinct_colours(len(names)),
            label_ids=label_ids,
            transform=transform,
        )


def _split(pairs: list, split: str, val_share: float) -> list:
    if split == "all":
        return pairs
    if split not in ("train", "val") or not 0 < val_share < 1:
        raise ValueError(
            f"split is {split!r} and val_share {val_share}: choose train, val or all, and a share in (0, 1)"
        )
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} picture cannot be split into training and validation: give at least 2")
    number = min(max(round(len(pairs) * val_share), 1), len(pairs) - 1)
    chosen = {int((index + 0.5) * len(pairs) / number) for index in range(number)}
    return [pair for index, pair in enumerate(pairs) if (index in chosen) == (split == "val")]


def distinct_colours(number: int) -> list[tuple[int, int, int]]:
    """RGB triples whose hues keep the golden angle, so that neighbours in the list differ most."""
    hsv = ((index * 0.618034 % 1, 0.85 - 0.35 * (index % 3 == 1), 0.95 - 0.3 * (index % 2)) for index in range(number))
    return [tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(*colour)) for colour in hsv]
