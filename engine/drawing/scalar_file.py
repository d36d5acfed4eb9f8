"""The CSV file to which a run appends its metrics."""

import csv
from pathlib import Path

from ..runtime.atomic_files import naming
from .tables import Table


class ScalarFile:
    """A CSV file to which a run appends one row of numbers at a time.

    Args:
        path: the file.
        keep_until: the iteration from which the run continues. Later rows of an existing file are dropped, because the
            run will write them again; 0 starts a new file.
    """

    def __init__(self, path: Path, keep_until: int):
        self.path = path
        self.rows: list[dict[str, float]] = []
        if path.exists() and keep_until:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a full disk may have truncated the last one
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
