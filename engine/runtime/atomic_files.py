"""Paths as they are given, and files that a kill or a full disk leaves as they were."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def given_path(value: str | int | float | Path) -> Path:
    """The path that stands on a command line or in YAML, where a folder called 2026 is read as a number."""
    return Path(str(value)).expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path`` when the block ends, and is removed when it fails.

    A kill leaves the unfinished file beside ``path``; the next writer starts it anew, so there is never a second one.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with naming(path):
            yield unfinished
            os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have the errors of a write, which do not know where it went, say ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or leave the one that was there."""
    with replacing(path) as unfinished:
        unfinished.write_text(text)
