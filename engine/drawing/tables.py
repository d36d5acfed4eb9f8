"""Plain-text tables for the terminal, and rows of numbers in CSV files."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.atomic_files import naming, replacing


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns; the first is text, the others are right-aligned, floats with two decimals."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(header), *cells]) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, cells)])


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a whole file, or leave the one that was there."""
    with replacing(path) as unfinished, open(unfinished, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


class ScalarFile:
    """A CSV file to which a run adds one row of numbers at a time.

    Args:
        path: of the file; an existing one is continued.
        keep_until: iteration that the run continues from; later rows of an existing file are dropped, they
            will be made again.
    """

    def __init__(self, path: Path, keep_until: int):
        self.path = path
        self.rows: list[dict[str, float]] = []
        if path.exists() and keep_until:
            lines = path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a full disk may have cut off the last
            number = {"iteration": int}
            read = [
                {key: number.get(key, float)(value) for key, value in row.items() if value}
                for row in csv.DictReader(whole)
            ]
            self.rows = [row for row in read if row["iteration"] <= keep_until]
        if self.rows:
            self._write_all()
        else:
            path.unlink(missing_ok=True)

    def add(self, row: dict[str, float]) -> None:
        """Append a row; its keys are those of the rows before."""
        self.rows.append(row)
        if len(self.rows) == 1:
            self._write_all()
            return
        with naming(self.path), open(self.path, "a", newline="") as file:
            csv.writer(file).writerow([row.get(key, "") for key in self.rows[0]])

    def _write_all(self) -> None:
        header = list(self.rows[0])
        write_csv(self.path, header, [[row.get(key, "") for key in header] for row in self.rows])
