"""The CSV file to which a run appends its metrics."""

import csv
import os
import sys
from pathlib import Path

from ..runtime.atomic_files import naming
from .tables import Table


class ScalarFile:
    """A CSV file to which a run appends one row of numbers at a time.

    Args:
        path: the file.
        keep_until: the iteration from which the run continues. Later rows of an existing file are dropped, because the
            run will write them again; 0 starts a new file. Lines that cannot be read, as after a power cut, are left
            out, and the file with them is kept as ``NAME.damaged``.
    """

    def __init__(self, path: Path, keep_until: int):
        self.path = path
        self.rows: list[dict[str, float]] = []
        if path.exists() and keep_until:
            self.rows, damaged = _read(path)
            if damaged:
                kept = path.with_name(f"{path.name}.damaged")
                os.replace(path, kept)
                print(f"{path}: lines that cannot be read are left out: {damaged}, see {kept}", file=sys.stderr)
            self.rows = [row for row in self.rows if row["iteration"] <= keep_until]
        if self.rows:
            self._write_all()
        else:
            path.unlink(missing_ok=True)

    def add(self, row: dict[str, float]) -> None:
        """Append a row, which must have the same keys as the previous ones."""
        self.rows.append(row)
        if len(self.rows) == 1:
            self._write_all()
            return
        with naming(self.path), open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow([row.get(key, "") for key in self.rows[0]])

    def _write_all(self) -> None:
        header = list(self.rows[0])
        Table(header, [[row.get(key, "") for key in header] for row in self.rows]).write_csv(self.path)


def _read(path: Path) -> tuple[list[dict[str, float]], int]:
    """Return the rows of a file and the number of unreadable lines; an incomplete last line is ignored."""
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = iter(f"{line}\n" for line in whole)
    header = next(csv.reader(lines), [])  # a name in it may contain a line break
    parsed = [_numbers(header, line.strip().split(",")) for line in lines]
    rows = [row for row in parsed if row]
    # Without the end of a quoted name, the header takes all lines.
    return rows, len(parsed) - len(rows) if rows else len(whole)


def _numbers(header: list[str], cells: list[str]) -> dict[str, float]:
    """Return a row as numbers, without its empty cells; an empty one if it cannot be read."""
    try:
        row = {key: float(cell) for key, cell in zip(header, cells, strict=True) if cell}
        return row | {"iteration": int(row["iteration"])}
    except (KeyError, ValueError, OverflowError):
        return {}
