"""The rows of a comparison: the tolerances of the verification, and how the times are saved and plotted."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..engine.drawing.png_files import write_figure
from ..engine.drawing.tables import Table

# The largest error against float64, relative to the largest element, at which an implementation counts as correct.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def save_rows(rows: list[dict[str, Any]], about: dict[str, str], output: Path) -> str:
    """Append measurements to ``<output>.csv`` and plot them; return their table.

    Args:
        rows: one mapping per measurement, all with the same keys.
        about: the provenance of the measurements, added to each row of the file.
        output: the common prefix of the file paths.
    """
    if not rows:
        return "nothing was measured"
    Table.of_records([row | about for row in rows]).append_csv(Path(f"{output}.csv"))
    draw(rows, about["machine"], Path(f"{output}_{rows[0]['shape']}_{rows[0]['dtype']}.png"))
    return Table.of_records(rows).text()


def draw(rows: list[dict[str, Any]], machine: str, path: Path) -> None:
    """Plot the medians as a bar chart, grouped by pass, on a logarithmic axis."""
    directions = list(dict.fromkeys(row["pass"] for row in rows))
    figure = Figure(figsize=(7, 1 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    labels, widths, colours = [], [], []
    for index, direction in enumerate(directions):
        for row in sorted((row for row in rows if row["pass"] == direction), key=lambda row: row["median_us"]):
            labels.append(f"{row['peer']}, {direction}")
            widths.append(row["median_us"])
            colours.append(f"C{index}")
    bars = axes.barh(labels, widths, color=colours)
    axes.bar_label(bars, fmt=" %.0f")
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="median time (us)")
    axes.margins(x=0.15)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{rows[0]['shape']}, {rows[0]['dtype']}, {machine}", fontsize=10)
    write_figure(path, figure, dpi=150)
