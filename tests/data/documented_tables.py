"""The tables of docs/data.md on what people have: each row names files, and has a test that quotes its beginning."""

from collections.abc import Callable

from conftest import ROOT


class DocumentedTable:
    """A table of docs/data.md and the tests of its rows.

    Args:
        heading: the heading of the table's first column.
    """

    def __init__(self, heading: str):
        self.heading = heading
        self.tested: list[str] = []

    def row(self, text: str) -> Callable[[Callable], Callable]:
        """Register a test for the row that begins with ``text``."""

        def register(test: Callable) -> Callable:
            self.tested.append(text)
            return test

        return register

    def documented(self) -> list[str]:
        """Return the beginnings of the table's rows."""
        page = (ROOT / "docs" / "data.md").read_text().partition("## Unusual files")[2]
        table = page.partition(f"| {self.heading} | what happens |\n|---|---|\n")[2].partition("\n\n")[0]
        return [line.removeprefix("| ").split(" | ")[0] for line in table.splitlines()]
