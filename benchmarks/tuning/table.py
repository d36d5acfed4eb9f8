"""The table of pinned tiles during tuning: each measured row replaces its predecessor in the file immediately."""

import datetime
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from ... import kernels
from ...kernels.launches import plan, tile_tables

ORIGIN = "measured by mode=tune; every other length and dtype has the rule's tile"
_SOURCES = ("addressing.py", "backward.py", "forward.py", "overlap.py")


class Range(NamedTuple):
    """The calls that one row of the table applies to.

    Attributes:
        kernel: "forward" or "backward".
        dtype: name of the dtype, such as "bfloat16".
        shortest, longest: the range of line lengths, inclusive.
        length: the length that is timed.
        query_channels: the largest number of query channels.
    """

    kernel: str
    dtype: str
    shortest: int
    longest: int
    length: int
    query_channels: int

    def __str__(self) -> str:
        return f"{self.kernel}, {self.dtype}, lines of {self.shortest} to {self.longest}"

    def row(self, tile: plan.Tile) -> dict[str, Any]:
        """Return the row of the table that pins ``tile`` for this range."""
        row = {"kernel": self.kernel, "dtype": self.dtype, "min_length": self.shortest, "max_length": self.longest}
        return row | {"max_query_channels": self.query_channels, "tile": tile._asdict()}


def measured_with(versions: dict[str, str]) -> dict[str, str]:
    """Return what a measurement depends on: the versions of torch and Triton, and the kernels' source."""
    folder = Path(kernels.__file__).parent
    source = b"".join((folder / name).read_bytes() for name in _SOURCES)
    return {
        "torch": versions["torch"],
        "triton": versions["triton"],
        "kernels": hashlib.sha256(source).hexdigest()[:12],
    }


class TunedTable:
    """A device's table, rewritten after every measured row.

    Args:
        device: the GPU.
        conditions: what the measurements depend on, see :func:`measured_with`.
    """

    def __init__(self, device: plan.Device, conditions: dict[str, str]):
        self.device, self.conditions = device, conditions
        self.rows = list(tile_tables.load_table(device.name))

    def has(self, wanted: Range) -> bool:
        """Return whether this range has been measured under the same conditions, for example in an interrupted run."""
        return any(
            _covers(wanted, row)
            and row.get("measured", {}).items() >= (self.conditions | {"length": wanted.length}).items()
            and row["max_length"] - row["min_length"] == wanted.longest - wanted.shortest
            for row in self.rows
        )

    def pin(self, measured: Range, *timed: tuple[plan.Tile, float]) -> Path:
        """Replace the rows that the measured range covers, write the file and return its path.

        Args:
            measured: the range.
            *timed: tiles with their median times in microseconds; each call uses the first one that it can.
        """
        about = self.conditions | {"length": measured.length, "date": datetime.date.today().isoformat()}
        rows = [measured.row(tile) | {"median_us": round(median, 1), "measured": about} for tile, median in timed]
        places = [index for index, old in enumerate(self.rows) if _covers(measured, old)]
        self.rows = [old for old in self.rows if not _covers(measured, old)]
        # Lookups use the first matching row, so rows that replace none are inserted before those that they overlap.
        first = places[0] if places else 0
        self.rows[first:first] = rows
        path = tile_tables.write_table(self.device, self.rows, {"origin": ORIGIN})
        self.restore()
        return path

    def restore(self) -> None:
        """Make this process use the current table again after candidates were tried."""
        plan.use_table(self.device.name, self.rows)


def _covers(wanted: Range, row: dict[str, Any]) -> bool:
    alike = (row["kernel"], row["dtype"]) == (wanted.kernel, wanted.dtype)
    channels = row["max_query_channels"] <= wanted.query_channels
    return alike and channels and wanted.shortest <= row["min_length"] and row["max_length"] <= wanted.longest
