"""A user's own images and masks: two folders and the class names."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

from ..dataset import IGNORE_INDEX
from ..file_lists import match_by_stem
from ..image_pairs import ImagePairs, PairTransform
from .layouts import find_folders


class Folder(ImagePairs):
    """Images in one folder, and masks (label images, .png) with the same names in another.

    A mask holds one class number from 0 to K - 1 per pixel (255 is ignored), as grey values or palette indices.

    Args:
        images: the folder of images, searched recursively.
        masks: the folder of masks, with the same subfolders.
        classes: K names, or K itself.
        palette: K RGB triples; distinct colours by default.
        ignore_label: an additional mask value to ignore.
        split: "train" or "val", two disjoint parts of the images, or "all".
        val_share: the fraction of images in "val", evenly spaced over the sorted list of names.
        transform: see :class:`~ccnet.data.image_pairs.ImagePairs`.
    """

    def __init__(
        self,
        images: str | Path | None,
        masks: str | Path | None,
        *,
        classes: Sequence[str] | int | None,
        split: str,
        val_share: float,
        transform: PairTransform | None,
        palette: Sequence[Sequence[int]] | None = None,
        ignore_label: int | None = None,
    ):
        folders = find_folders(images, masks)
        if classes is None:
            raise ValueError("dataset.classes is not set: pass dataset.classes=[NAME,NAME,...] or their number")
        names = [f"class {index}" for index in range(classes)] if isinstance(classes, int) else list(classes)
        if not 2 <= len(names) <= 254:
            raise ValueError(f"dataset.classes has {len(names)} classes: pass 2 to 254, as names or as a number")
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


def _split(pairs: list[tuple[Path, Path]], split: str, val_share: float) -> list[tuple[Path, Path]]:
    if split == "all":
        return pairs
    if split not in ("train", "val") or not 0 < val_share < 1:
        raise ValueError(
            f"split is {split!r} and val_share {val_share}: choose train, val or all, and a fraction in (0, 1)"
        )
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} image cannot be split into training and validation: at least 2 are needed")
    number = min(max(round(len(pairs) * val_share), 1), len(pairs) - 1)
    chosen = {int((index + 0.5) * len(pairs) / number) for index in range(number)}
    return [pair for index, pair in enumerate(pairs) if (index in chosen) == (split == "val")]


def distinct_colours(number: int) -> list[tuple[int, int, int]]:
    """Return RGB triples whose hues are a golden angle apart, so that adjacent colours differ clearly."""
    colours = []
    for index in range(number):
        hue, saturation, value = index * 0.618034 % 1, 0.85 - 0.35 * (index % 3 == 1), 0.95 - 0.3 * (index % 2)
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours
