"""Read annotation files in COCO's format. The files are untrusted, so every field that is used is checked."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as rle


def _is_number(value: Any) -> bool:
    """Return whether ``value`` is a number below 2^53 in magnitude, the limit for exact integers in floating point."""
    return isinstance(value, (int, float)) and -(2**53) < value < 2**53


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(_is_number(value) for value in values)


def _are_polygons(values: Any) -> bool:
    """Return whether ``values`` is a list of flat lists; their numbers are checked when they are drawn."""
    return all(isinstance(polygon, list) and not (polygon and isinstance(polygon[0], list)) for polygon in values)


# The fields that are read from the entries of each list in an annotation file, with their checks.
_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "images": {"id": _is_integer, "file_name": _is_text, "height": _is_integer, "width": _is_integer},
    "annotations": {
        "id": _is_integer,
        "image_id": _is_integer,
        "category_id": _is_integer,
        "bbox": lambda value: _are_numbers(value) and len(value) == 4,
        "segmentation": lambda value: isinstance(value, (list, dict)),
    },
    "categories": {"id": _is_integer, "name": _is_text},
}

# The fields that identify an entry, with a hint for an entry that is repeated; annotation ids are not used.
_UNIQUE = {
    ("images", "id"): "",
    ("images", "file_name"): "; give all annotations of an image the id of one entry, and remove the others",
    ("categories", "id"): "",
    ("categories", "name"): "; rename a category, or remove those without annotations, such as supercategories",
}


def read_annotations(path: Path) -> dict[str, Any]:
    """Read and check an annotation file in COCO's format.

    Raises:
        ValueError: the file is not valid JSON, a required field is missing or has the wrong type, or two images or two
            categories share an id or a name.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # some tools write a byte order mark
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON and may be truncated: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in _FIELDS):
        raise ValueError(f"{path} is not an annotation file in COCO's format: it needs the lists {', '.join(_FIELDS)}")
    for part, fields in _FIELDS.items():
        integers = [name for name, good in fields.items() if good is _is_integer]
        for number, entry in enumerate(content[part]):
            if isinstance(entry, dict):
                _make_integers(entry, integers)
            if not (isinstance(entry, dict) and all(good(entry.get(name)) for name, good in fields.items())):
                raise ValueError(
                    f"{path}: entry {number} of {part} lacks one of {', '.join(fields)}, or one of them has the wrong "
                    f"type for COCO's format: {str(entry)[:200]}"
                )
    for entry in content["images"]:
        entry["file_name"] = entry["file_name"].replace("\\", "/")  # paths written on Windows
    for (part, name), hint in _UNIQUE.items():
        for value, repeated in Counter(entry[name] for entry in content[part]).most_common(1):
            if repeated > 1:
                raise ValueError(f"{path}: {repeated} {part} have the {name} {value}: {name}s must be unique{hint}")
    for entry in content["annotations"]:
        if entry.get("iscrowd", 0) is None:
            del entry["iscrowd"]  # as in files without crowds
        _make_integers(entry, ("iscrowd",))
        if (crowd := entry.get("iscrowd", 0)) not in (0, 1):
            raise ValueError(f"{path}: annotation {entry['id']} has iscrowd={crowd!r}: expected 0, or 1 for a crowd")
        if isinstance(given := entry["segmentation"], dict):
            _make_integers(given, ("size", "counts"))
        elif not _are_polygons(given):
            raise ValueError(
                f"{path}: annotation {entry['id']} has the segmentation {str(given)[:100]}: expected a list of "
                "polygons, [[x1, y1, x2, y2, x3, y3, ...], ...], or a run-length encoding"
            )
    return content


def has_mask(annotation: dict[str, Any]) -> bool:
    """Return whether an object has a mask: a run-length encoding, or a polygon of at least three points."""
    given = annotation["segmentation"]
    return isinstance(given, dict) or any(len(polygon) >= 6 for polygon in given)


def _make_integers(entry: dict[str, Any], names: Iterable[str]) -> None:
    """Convert whole floating-point numbers in fields to integers; some tools write [480.0, 640.0]."""
    for name in names:
        value = entry.get(name)
        if isinstance(value, float):
            entry[name] = _as_integer(value)
        elif isinstance(value, list):
            entry[name] = [_as_integer(number) for number in value]


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_segmentation(annotation: dict[str, Any], size: tuple[int, int], file: Path) -> None:
    """Raise ValueError unless a mask fits its image: the size it claims determines how much memory it takes."""
    given, (height, width) = annotation["segmentation"], size
    fits = _is_rle_of(given, height, width) if isinstance(given, dict) else _are_polygons_near(given, 2 * max(size))
    if not fits:
        raise ValueError(
            f"{file}: annotation {annotation['id']} has a mask that does not lie within its image of {width}x{height} "
            f"pixels: {str(given)[:100]}"
        )


def check_area(annotation: dict[str, Any], file: Path) -> None:
    """Raise ValueError unless an annotation has the area that scoring needs."""
    area: Any = annotation.get("area")
    if not (_is_number(area) and area >= 0):
        raise ValueError(f"{file}: annotation {annotation['id']} has area={area!r}: scoring needs the area in pixels")


def decoded_mask(annotation: dict[str, Any], size: tuple[int, int], file: Path) -> np.ndarray:
    """Return the mask of an object in an image of ``size`` (H, W), uint8 (H, W).

    Raises:
        ValueError: the mask is invalid or does not fit its image; the message names ``file``.
    """
    check_segmentation(annotation, size, file)
    try:
        return rle.decode(rle.segmToRle(annotation["segmentation"], size[1], size[0]))
    except (ValueError, TypeError, RuntimeError) as error:  # invalid run lengths
        raise ValueError(f"{file}: annotation {annotation['id']} has an invalid mask: {error}") from error


def _is_rle_of(given: dict[str, Any], height: int, width: int) -> bool:
    """Return whether ``given`` is a run-length encoding, a compressed string or a list, of a mask of that size."""
    counts = given.get("counts")
    readable = _is_text(counts) or (
        isinstance(counts, list) and all(_is_integer(count) and count >= 0 for count in counts)
    )
    return readable and given.get("size") == [height, width]


def _are_polygons_near(polygons: list[Any], farthest: float) -> bool:
    """Return whether no coordinate exceeds ``farthest``, which allows for polygons that extend beyond their image."""
    return all(_are_numbers(polygon) and max(map(abs, polygon), default=0) <= farthest for polygon in polygons)
