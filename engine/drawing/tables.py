"""Tables, rendered as text or Markdown, written as CSV, and read back."""

import csv
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..runtime.atomic_files import naming, replacing


class Table(NamedTuple):
    """A header and rows of cells; the first column names the row.

    Text and Markdown show floats with two decimals and everything else as `str` does; the first column is
    left-aligned, the others are right-aligned. CSV files contain numbers at full precision.

    Attributes:
        header: the column names.
        rows: one sequence of cells per row, as long as the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, Any]]) -> "Table":
        """Return a table of one or more records with the same keys; numbers are shown as the caller rounded them."""
        return cls(tuple(records[0]), [[str(value) for value in record.values()] for record in records])

    def text(self) -> str:
        """Return the table as aligned columns for the terminal."""
        lines = [list(self.header), *self._shown()]
        widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
        aligned = []
        for line in lines:
            spaces = [" " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)]
            cells = [line[0] + spaces[0], *(space + cell for space, cell in zip(spaces[1:], line[1:], strict=True))]
            aligned.append("  ".join(cells).rstrip())
        return "\n".join([aligned[0], "  ".join("-" * width for width in widths), *aligned[1:]])

    def markdown(self) -> str:
        """Return a Markdown table."""
        alignment = ["---", *["--:"] * (len(self.header) - 1)]
        shown = [[cell.replace("|", r"\|") for cell in line] for line in ([*self.header], *self._shown())]
        return "\n".join(f"| {' | '.join(line)} |" for line in (shown[0], alignment, *shown[1:]))

    def write_csv(self, path: Path) -> None:
        """Write a CSV file atomically."""
        with replacing(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([self.header, *self.rows])

    def append_csv(self, path: Path) -> None:
        """Append the rows to a CSV file; create the file if needed.

        Raises:
            ValueError: the file has other columns.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), open(path, "a+", encoding="utf-8", newline="") as file:
            file.seek(0)
            columns = next(csv.reader(file), None)
            if columns is not None:
                _check_columns(path, columns, self.header)
            csv.writer(file).writerows(self.rows if columns else [self.header, *self.rows])

    def _shown(self) -> list[list[str]]:
        return [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in self.rows]


def read_records(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as dictionaries; none if the file does not exist."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_rows(path: Path, header: Sequence[str]) -> list[list[str]]:
    """Return the rows of a CSV file with these columns; none if the file does not exist.

    Raises:
        ValueError: the file has other columns.
    """
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        columns, *rows = [*csv.reader(file)] or [[*header]]
    _check_columns(path, columns, header)
    return rows


def _check_columns(path: Path, columns: Sequence[str], header: Sequence[str]) -> None:
    if list(columns) != list(header):
        raise ValueError(
            f"{path} has the columns {', '.join(columns)}, not {', '.join(header)}, as another version wrote them: "
            "move the file away, or choose another output"
        )


def _width(text: str) -> int:
    """Return the width of a text in terminal columns; East Asian characters take two."""
    marks = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(character) in "WF" for character in text)
