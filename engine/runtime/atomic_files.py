"""Parse paths and write files atomically: if the process is killed or the disk is full, the old file stays intact."""

import json
import math
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...data.reading.file_lists import expanded_path
from .launchers import is_first


def given_path(value: str | int | float | Path | None) -> Path:
    """Convert a command-line or YAML value to a path; a folder named 2026, for example, is parsed as a number.

    Raises:
        ValueError: the value is an empty string, which would mean the current folder, or null.
    """
    if value is None or value == "":
        raise ValueError(
            f"got {'null' if value is None else 'an empty string'} as a path: use '.' for the current folder"
        )
    return expanded_path(value)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path to write to; it replaces `path` when the block ends and is removed if the block fails.

    The file's permissions follow the umask, however the block creates it. If the process is killed, the temporary file
    remains beside `path` until the next write to `path`. Two processes of a run may write the same file.
    """
    process = "" if is_first() else os.environ["RANK"]
    unfinished = path.with_name(f".{path.name}.part{process}")
    try:
        with naming(path):
            unfinished.unlink(missing_ok=True)
            unfinished.touch()
            mode = unfinished.stat().st_mode
            yield unfinished
            if unfinished.stat().st_mode != mode:  # safetensors creates files that only their owner can read
                unfinished.chmod(mode)
            os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Add `path` to an OSError that lacks a file name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically, with null in place of NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; {} if the file is missing or damaged, or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
