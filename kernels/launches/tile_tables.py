"""The tables of pinned tiles, ``kernels/configs/<device>.json``, one per GPU that has been measured."""

import importlib.metadata
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from .problem import Device, Problem, Tile

CONFIGS = Path(__file__).parents[1] / "configs"
tables: dict[str, list[dict[str, Any]]] = {}


def pinned_tiles(kernel: str, problem: Problem, length: int, device_name: str) -> Iterator[Tile]:
    """Yield the tiles of the device's table that apply to lines of ``length``, in order of preference."""
    for row in load_table(device_name):
        if (row["kernel"], row["dtype"]) == (kernel, problem.dtype) and (
            row["min_length"] <= length <= row["max_length"] and problem.query_channels <= row["max_query_channels"]
        ):
            # The tile that is fastest with one version may spill registers with another.
            if "measured" in row and not triton_version().startswith(_minor(row["measured"]["triton"])):
                continue
            yield Tile(**row["tile"])


def load_table(device_name: str) -> list[dict[str, Any]]:
    """Return the rows of ``configs/<device>.json``, or an empty list for a device without a table."""
    if device_name not in tables:
        path = table_path(device_name)
        tables[device_name] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return tables[device_name]


def write_table(device: Device, rows: list[dict[str, Any]], origin: dict[str, Any]) -> Path:
    """Write ``configs/<device>.json`` atomically, one row per line, with the rows' ``origin``; return its path."""
    head = {"device": device.name, "capability": list(device.capability), **origin}
    fields = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    path = table_path(device.name)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text("{\n" + ",\n".join([*fields, f' "rows": [\n{lines}\n ]']) + "\n}\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path


def table_path(device_name: str) -> Path:
    """Return the path of a device's table of pinned tiles; the file may not exist."""
    return CONFIGS / f"{device_name.lower().replace(' ', '_')}.json"


@cache
def triton_version() -> str:
    """Return the installed version of Triton without importing it; an empty string if it is not installed."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2]) + "."
