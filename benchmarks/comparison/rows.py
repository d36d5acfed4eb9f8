"""The result rows of a comparison: their columns, the tolerated errors, the CSV file and the chart."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ...engine.drawing.png_files import write_figure
from ...engine.drawing.tables import Table
from ...kernels.launches.cost import least_cost
from ...kernels.launches.problem import Problem
from ..timing import Timing

# The largest accepted error of an implementation against float64, relative to the largest element.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


class Rows:
    """The measurements of a comparison, appended to ``<output>.csv`` one by one.

    Args:
        about: the provenance of the measurements, added to each row of the file.
        output: the common prefix of the file paths.
    """

    def __init__(self, about: dict[str, str], output: Path):
        self.about, self.output = about, output
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add a measurement; all of them must have the same keys."""
        Table.of_records([row | self.about]).append_csv(Path(f"{self.output}.csv"))
        self.rows.append(row)

    def finish(self) -> str:
        """Plot the measurements and return their table.

        Raises:
            ValueError: nothing was measured.
        """
        if not self.rows:
            raise ValueError("nothing was measured: none of the implementations runs here, or the reasons are above")
        first = self.rows[0]
        draw(self.rows, self.about["machine"], Path(f"{self.output}_{first['shape']}_{first['dtype']}.png"))
        return Table.of_records(self.rows).text()


def result_row(
    peer: str, direction: str, problem: Problem, timing: Timing, error: float, seed: int, **others: Any
) -> dict[str, Any]:
    """Return the row of one measurement.

    Args:
        peer: name of the implementation.
        direction: the pass: "forward", "backward" or "both", which may be followed by a comma and a remark.
        problem: the sizes; the rates, in GB/s and TFLOP/s, are those of a pass of :func:`least_cost` in this time.
        timing: the time per call, in microseconds.
        error: the largest error relative to the largest element.
        seed: the seed of the inputs.
        **others: columns that only one framework has.
    """
    cost = least_cost(problem, direction.split(",")[0])
    row: dict[str, Any] = {"peer": peer, "pass": direction}
    row |= {"shape": "x".join(map(str, (problem.batch, *problem.spatial))), "dtype": problem.dtype}
    row |= {field: round(value, 1) for field, value in timing._asdict().items()}
    row["gb_per_s"] = round(cost.bytes / timing.median_us / 1e3, 1)
    row["tflops"] = round(cost.flops / timing.median_us / 1e6, 2)
    row |= others | {"error": f"{error:.1e}"}
    return row | {"d": problem.query_channels, "c": problem.value_channels, "seed": seed}


def largest_error(results: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """Return the largest error of the results, each relative to its largest wanted element; NaN if any is NaN."""
    pairs = zip(results, wanted, strict=True)
    errors = [((result - want).abs().max() / want.abs().max()).item() for result, want in pairs]
    return float(np.max(errors))  # unlike max, it does not skip NaN


def check_error(error: float, dtype: str) -> None:
    """Raise ValueError if an error, relative to the largest element, is above the dtype's tolerance."""
    if not error < TOLERANCE[dtype]:
        raise ValueError(f"the error is {error:.1e} of the largest element, above the tolerance")


def draw(rows: list[dict[str, Any]], machine: str, path: Path) -> None:
    """Plot the medians as bars, grouped by pass, each with its multiple of the shortest time of the pass."""
    per_unit, unit = (1e3, "ms") if max(row["median_us"] for row in rows) >= 1e4 else (1, "us")
    figure = Figure(figsize=(7, 1 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names, times, colours, texts = [], [], [], []
    for index, direction in enumerate(dict.fromkeys(row["pass"] for row in rows)):
        group = sorted((row for row in rows if row["pass"] == direction), key=lambda row: row["median_us"])
        for row in group:
            time = row["median_us"] / per_unit
            names.append(f"{row['peer']}, {direction}")
            times.append(time)
            colours.append(f"C{index}")
            digits = 1 if time < 100 else 0
            texts.append(f" {time:.{digits}f} {unit}, {row['median_us'] / group[0]['median_us']:.1f}x")
    axes.bar_label(axes.barh(names, times, color=colours), texts)
    axes.invert_yaxis()
    axes.set(xlabel=f"median time ({unit})")
    axes.margins(x=0.3, y=0.02)
    axes.set_xlim(left=0)
    axes.set_title(f"{rows[0]['shape']}, {rows[0]['dtype']}, {machine}", fontsize=10)
    write_figure(path, figure, dpi=150)
