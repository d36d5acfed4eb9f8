"""Annotation files in COCO's format. They are untrusted: every field that is used is checked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def is_number(value: Any) -> bool:
    """Return True for a finite number below 2^53 in magnitude, up to which floats represent integers exactly."""
    return isinstance(value, (int, float)) and -(2**53) < value < 2**53


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(is_number(value) for value in values)


# For each list in an annotation file, the fields that are read from its entries, and their checks.
_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "images": {"id": is_integer, "file_name": _is_text, "height": is_integer, "width": is_integer},
    "annotations": {
        "id": is_integer,
        "image_id": is_integer,
        "category_id": is_integer,
        "bbox": lambda value: _are_numbers(value) and len(value) == 4,
        "segmentation": lambda value: isinstance(value, (list, dict)),
    },
    "categories": {"id": is_integer, "name": _is_text},
}


def read_annotations(path: Path) -> dict[str, Any]:
    """Read and check an annotation file in COCO's format.

    Raises:
        ValueError: the file is not valid JSON, or a required field is missing or has the wrong type.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON and may be truncated: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in _FIELDS):
        raise ValueError(f"{path} is not an annotation file in COCO's format: it needs the lists {', '.join(_FIELDS)}")
    for part, fields in _FIELDS.items():
        for number, entry in enumerate(content[part]):
            if not (isinstance(entry, dict) and all(good(entry.get(name)) for name, good in fields.items())):
                raise ValueError(
                    f"{path}: entry {number} of {part} lacks one of {', '.join(fields)}, or one of them has the wrong "
                    f"type for COCO's format: {str(entry)[:200]}"
                )
    for entry in content["annotations"]:
        _make_sizes_integers(entry["segmentation"])
    return content


def has_mask(annotation: dict[str, Any]) -> bool:
    """Return whether an object has a mask: a run-length encoding, or a polygon that is not empty."""
    given = annotation["segmentation"]
    return isinstance(given, dict) or any(given)


def _make_sizes_integers(segmentation: Any) -> None:
    """Replace the size [480.0, 640.0] of a run-length encoding, which some tools write, by [480, 640]."""
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if isinstance(size, list) and all(isinstance(side, float) and side.is_integer() for side in size):
        segmentation["size"] = [int(side) for side in size]


def check_segmentation(annotation: dict[str, Any], size: tuple[int, int], file: Path) -> None:
    """Raise ValueError unless a mask lies within its image: its claimed size determines how much memory it takes."""
    given, (height, width) = annotation["segmentation"], size
    fits = _is_rle_of(given, height, width) if isinstance(given, dict) else _are_polygons_near(given, 2 * max(size))
    if not fits:
        raise ValueError(
            f"{file}: annotation {annotation['id']} has a mask that does not lie within its image of {width}x{height} "
            f"pixels: {str(given)[:100]}"
        )


def _is_rle_of(given: dict[str, Any], height: int, width: int) -> bool:
    """Return True for the run-length encoding of a mask of that size, as a compressed string or as a list."""
    counts = given.get("counts")
    readable = _is_text(counts) or (
        isinstance(counts, list) and all(is_integer(count) and count >= 0 for count in counts)
    )
    return readable and given.get("size") == [height, width]


def _are_polygons_near(polygons: list[Any], farthest: float) -> bool:
    """Return True if all coordinates are at most ``farthest``: some polygons extend slightly beyond their image."""
    return all(_are_numbers(polygon) and max(map(abs, polygon), default=0) <= farthest for polygon in polygons)
