"""The log of a search, written as the search runs."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...engine.drawing.tables import Table, read_records
from ...kernels.launches.problem import Tile
from .examine import Needs
from .table import Range

BROKE = "broke the GPU's context"  # such as an illegal access, after which nothing else runs in the process


class Log:
    """One line per candidate, printed and appended to a CSV file as soon as it is known.

    Args:
        path: the file.
        about: the provenance of the measurements, added to each row.
    """

    def __init__(self, path: Path, about: dict[str, str]):
        self.path, self.about = path, about
        broken = [row for row in read_records(self.path) if row["outcome"].startswith(BROKE)]
        self.broken = {self._key(row) for row in broken if row["machine"] == about["machine"]}

    def add(self, scope: Range, tile: Tile, needs: Needs, median_us: float | None, outcome: str) -> None:
        """Record the outcome of a candidate."""
        row: dict[str, Any] = {"kernel": scope.kernel, "dtype": scope.dtype, "length": scope.length}
        row |= tile._asdict()
        row |= {"registers": needs.registers, "spilled": needs.spilled, "shared_kb": round(needs.shared / 1024, 1)}
        row |= {"median_us": "" if median_us is None else round(median_us, 1), "outcome": outcome}
        Table.of_records([row | self.about]).append_csv(self.path)
        resources = f"{needs.registers} registers, {needs.shared / 1024:.0f} KB: " if needs.registers else ""
        tqdm.write(f"{scope.kernel} {scope.dtype} {scope.length}, {described(tile)}: {resources}{outcome}")

    def has_broken(self, scope: Range, tile: Tile) -> bool:
        """Return whether this candidate broke the context of a GPU of the same name in an earlier run."""
        row = {"kernel": scope.kernel, "dtype": scope.dtype, "length": scope.length} | tile._asdict()
        return self._key(row) in self.broken

    @staticmethod
    def _key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row.get(name)) for name in ("kernel", "dtype", "length", *Tile._fields))


def described(tile: Tile) -> str:
    """Format a tile for display, such as "128x128x32, 8 warps, 3 stages"."""
    sizes = f"{tile.block_m}x{tile.block_n}x{tile.block_c}, {tile.num_warps} warps, {tile.num_stages} stages"
    return sizes + (", descriptors" if tile.descriptors else "")
