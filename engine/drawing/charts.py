"""Draw charts: the curves and the confusion matrix of a run, and the comparisons of a sweep."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .png_files import write_figure

_SIDE_BY_SIDE = 8  # maximum number of option values that are spaced evenly along the axis
_NAMED = 20  # maximum number of settings in a legend
_NAMED_CLASSES = 40  # maximum number of classes whose names are legible next to a confusion matrix
_FAILED = "#d62728"
_POINTS = 200  # maximum number of points of a training curve; more would only show the noise of single batches


def save_curves(
    path: Path,
    train: Sequence[dict[str, float]],
    validation: Sequence[dict[str, float]],
    scores: Sequence[str],
) -> None:
    """Plot the loss, with its individual terms, and the validation scores over the iterations.

    Long training curves are averaged over intervals. The percentage axis ends just above the best score, so that low
    scores, such as AP early in training, remain legible.

    Args:
        path: the PNG file.
        train: rows of the training log: "iteration", "loss", "loss/<term>".
        validation: rows of the validation log: "iteration" and scores in percent.
        scores: the names of the scores to plot.
    """
    figure = Figure(figsize=(10, 3.6))
    # Manual margins, because a constrained layout draws everything twice.
    margins = {"left": 0.08, "right": 0.985, "top": 0.91, "bottom": 0.14, "wspace": 0.2}
    left, right = figure.subplots(1, 2, gridspec_kw=margins)
    highest = 0.0
    for name in [key for key in train[0] if key.startswith("loss")] if train else []:
        points = [(row["iteration"], row[name]) for row in train if row.get(name) is not None]
        iterations, means = _means(points)
        marker = "o" if len(means) == 1 else None  # a line through a single point is invisible
        left.plot(iterations, means, label=name, marker=marker, markersize=3, linewidth=1.6 if name == "loss" else 0.9)
        highest = max(highest, *filter(math.isfinite, means), 0.0)
    left.set(xlabel="iteration", ylabel="loss", title="training", ylim=(0, 1.15 * highest or 1))
    for name in scores:
        points = [(row["iteration"], row[name]) for row in validation]
        # Scores of 0 and 100 lie on the edges of the plot, which would clip their markers.
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name, clip_on=False, zorder=3)
    best = max((row[name] for row in validation for name in scores if math.isfinite(row[name])), default=0)
    right.set(xlabel="iteration", ylabel="percent", title="validation", ylim=(0, min(max(1.15 * best, 1), 100)))
    last = max([row["iteration"] for row in (*train[-1:], *validation[-1:])], default=1)
    for axis in (left, right):
        axis.set_xlim(0, 1.02 * max(last, 1))  # valid for a single validation too, and equal for both axes
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    write_figure(path, figure)


def _means(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Average a curve over intervals; return the last iterations and mean values of at most ``_POINTS`` intervals."""
    size = -(-len(points) // _POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [part[-1][0] for part in parts], [sum(value for _, value in part) / len(part) for part in parts]


def save_comparison(path: Path, settings: Mapping[str, Sequence[float | None]], score: str) -> None:
    """Plot the settings of a sweep as a bar chart of their scores in percent, averaged over the seeds.

    Args:
        path: the PNG file.
        settings: {setting: scores of its runs in percent}, with None for a failed run.
        score: the score's name.
    """
    figure = Figure(figsize=(7, 1.1 + 0.42 * len(settings)))
    axis = figure.subplots()
    names, room = [], [100.0]
    for row, (name, runs) in enumerate(settings.items()):
        values = [value for value in runs if value is not None]
        share = f"\n{len(values)} of {len(runs)} succeeded" if len(values) < len(runs) > 1 else ""
        names.append(f"{name}{share}")
        if not values:
            axis.text(1, row, "failed", color=_FAILED, va="center")
            continue
        mean, spread = float(np.mean(values)), _spread(values)
        axis.barh(row, mean, height=0.6, xerr=spread or None, color="#4464ad", capsize=3)
        if len(values) > 1:
            axis.plot(values, [row] * len(values), "o", color="white", markeredgecolor="black", markersize=4)
        text = f"{mean:.1f} ± {spread:.1f}" if len(values) > 1 else f"{mean:.1f}"
        end = max(*values, mean + spread)
        axis.annotate(text, (end, row), (6, 0), textcoords="offset points", va="center")
        room.append(end + 2 + 1.7 * len(text))  # percent that the bar and its text take
    axis.set_yticks(range(len(settings)), names, fontsize=9)
    axis.set_ylim(len(settings) - 0.4, -0.6)  # the first setting on top
    axis.set(xlabel=f"validation {score}, percent", xlim=(0, 1.01 * max(room)), xticks=range(0, 101, 20))
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    write_figure(path, figure, bbox_inches="tight")


def save_trend(path: Path, option: str, settings: Mapping[str, Mapping[float, Sequence[float]]], score: str) -> None:
    """Plot the score against the values of a numeric option, with one line per setting of the other options.

    A few values are spaced evenly; many values, as in a search, are plotted to scale.

    Args:
        path: the PNG file.
        option: the option's name.
        settings: {setting of the other options: {value: scores of its seeds in percent}}.
        score: the score's name.
    """
    every = sorted({value for by_value in settings.values() for value in by_value})
    side_by_side = len(every) <= _SIDE_BY_SIDE
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    for name, by_value in settings.items():
        values = sorted(by_value)
        means = [float(np.mean(by_value[value])) for value in values]
        spread = [_spread(by_value[value]) for value in values]
        places = [every.index(value) for value in values] if side_by_side else values
        axis.errorbar(
            places,
            means,
            yerr=spread if any(spread) else None,
            marker="o",
            linestyle="-" if side_by_side else "",
            capsize=3,
            label=name or None,
        )
    if side_by_side:
        axis.set_xticks(range(len(every)), [f"{value:.4g}" for value in every])
    elif every[0] > 0 and every[-1] > 10 * every[0]:
        axis.set_xscale("log")
    axis.set(xlabel=option, ylabel=f"validation {score}, percent")
    _write_with_legend(path, figure, axis)


def save_cost(path: Path, settings: Mapping[str, tuple[float, Sequence[float]]], score: str) -> None:
    """Plot the score against the cost, with one point per setting.

    Args:
        path: the PNG file.
        settings: {setting: (GFLOPs of one training crop, scores of its seeds in percent)}.
        score: the score's name.
    """
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    axis.set_prop_cycle(color=[colormaps["tab20"](index) for index in range(20)])
    for name, (gflops, values) in settings.items():
        spread = _spread(values)
        axis.errorbar(gflops, np.mean(values), yerr=spread or None, fmt="o", capsize=3, alpha=0.85, label=name or "all")
    axis.set(xlabel="GFLOPs of one training crop", ylabel=f"validation {score}, percent")
    low, high = min(gflops for gflops, _ in settings.values()), max(gflops for gflops, _ in settings.values())
    room = max(0.06 * (high - low), 0.02 * high)  # so that nearly equal costs look equal
    axis.set_xlim(low - room, high + room)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.ticklabel_format(useOffset=False)
    _write_with_legend(path, figure, axis)


def _spread(values: Sequence[float]) -> float:
    """Return the standard deviation over the seeds; 0 for a single seed."""
    return float(np.std(values, ddof=min(len(values) - 1, 1)))


def _write_with_legend(path: Path, figure: Figure, axis: Axes) -> None:
    """Write a chart with its legend to the right, where it hides nothing; omit a legend whose names would not fit."""
    axis.grid(alpha=0.3)
    if 0 < len(axis.get_legend_handles_labels()[0]) <= _NAMED:
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    write_figure(path, figure, bbox_inches="tight")


def save_confusion(path: Path, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Plot a confusion matrix, with each row in percent of the true class.

    Args:
        path: the PNG file.
        counts: the pixel counts (K, K) by true and predicted class.
        classes: the names of the K classes.
    """
    number = len(classes)
    with np.errstate(invalid="ignore"):
        shares = 100 * counts / counts.sum(axis=1, keepdims=True)  # NaN, drawn white, if the class does not occur
    named = number <= _NAMED_CLASSES  # the CSV file always has the names
    side = 3 + 0.34 * number if named else 12
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    if named:
        axis.set_xticks(range(number), classes, rotation=90, fontsize=8)
        axis.set_yticks(range(number), classes, fontsize=8)
    axis.set(xlabel="predicted", ylabel="true")
    if named:
        for row, column in np.argwhere(shares >= 0.5):
            colour = "white" if shares[row, column] > 55 else "black"
            axis.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(image, ax=axis, shrink=0.6, label="percent of the true class")
    write_figure(path, figure, bbox_inches="tight")
