"""The figure of a sweep: accuracy as lines over a swept value, or a row for each combination.

Conditions differ by color and by marker, so the figure is readable without color.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unfool.report.document import Drawing
from unfool.report.figures.style import (
    BLUE,
    GRAY,
    OCHRE,
    RUST,
    TEAL,
    VIOLET,
    WIDTH,
    blank,
    draw,
    ground,
    interval,
    legend,
    percent_axis,
)
from unfool.report.formatting import Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LABELS = 8  # lines in a panel
PANELS_PER_ROW = 3  # panels in a row
COLORS = (BLUE, RUST, TEAL, OCHRE, VIOLET, GRAY)
MARKERS = "ovsD^PX"  # one more than colors, so that pairs of both repeat late
FIXED = {"clean": (BLUE, "o"), "robust": (RUST, "v")}


@dataclass(frozen=True)
class Point:
    """A combination of a sweep.

    Attributes:
        values: Swept path to its value in this combination, as text.
        shares: Condition to accuracy per draw.
    """

    values: Mapping[str, str]
    shares: Mapping[str, Share]


def figure(points: Sequence[Point], names: Sequence[str], attacks: Collection[str]) -> Drawing:
    """Render the figure of a sweep.

    Args:
        points: The combinations.
        names: The conditions of the table, in its order.
        attacks: The conditions from which `robust` is chosen.
    """
    return draw(build_figure(points, names, attacks))


def build_figure(points: Sequence[Point], names: Sequence[str], attacks: Collection[str]) -> Figure:
    """Draw lines if the first swept path takes several numbers, else a row for each combination.

    With several paths and at most two conditions to draw, each value of the second path is a line, and
    each condition has its own panels. Otherwise each condition is a line. The remaining paths get a
    panel for each combination of their values.
    """
    if not over_numbers(points):
        return _by_name(points, names)
    if len(shown := legible(points, names, attacks)) <= 2 and len(points[0].values) > 1:
        return _by_second(points, shown)
    return _by_condition(points, shown)


def over_numbers(points: Sequence[Point]) -> bool:
    """Whether the first swept path takes several numbers, so that lines can be drawn."""
    first = {_first(point) for point in points}
    return None not in first and len(first) > 1


def legible(
    points: Sequence[Point], names: Sequence[str], attacks: Collection[str], limit: int = MAX_LABELS
) -> list[str]:
    """Choose at most `limit` conditions to draw as lines, preferring those with the lowest accuracy.

    `clean` and `robust` are always kept, except `robust` if it equals the only attack at every point.
    """
    only_attack = next(iter(attacks), "") if len(attacks) == 1 else ""
    robust_is_redundant = only_attack in names and all(
        p.shares.get("robust") == p.shares.get(only_attack) for p in points
    )
    candidates = [name for name in names if not (robust_is_redundant and name == "robust")]
    fixed = [name for name in candidates if name in FIXED]
    height = {
        name: fmean(point.shares[name]["accuracy"] for point in points if name in point.shares)
        for name in candidates
        if name not in FIXED
    }
    lowest = sorted(height, key=lambda name: height[name])[: limit - len(fixed)]
    return [name for name in candidates if name in FIXED or name in lowest]


def _by_name(points: Sequence[Point], names: Sequence[str]) -> Figure:
    """Draw a row for each combination, with every condition of the table."""
    step = 0.28 if len(names) == 2 else 0.7 / len(names)
    height = 0.34 if len(names) == 2 else 0.12 * len(names) + 0.12
    figure = blank(WIDTH, 1.2 + height * len(points))
    axes = figure.subplots()
    for i, (name, (color, marker, _)) in enumerate(_styles(names).items()):
        style = {"color": color, "marker": marker, "markersize": 5.5}
        style |= {} if name == "clean" else {"markerfacecolor": "white"}
        label, shift = name, step * (i - (len(names) - 1) / 2)
        for y, point in enumerate(points):
            if name in point.shares:
                interval(axes, point.shares[name], y + shift, style, label)
                label = None
    rows = [_describe_values(point, tuple(point.values)) or "all runs" for point in points]
    percent_axis(axes, rows, "accuracy per draw, %")
    legend(figure, axes, min(len(names), 5))
    return figure


def _by_condition(points: Sequence[Point], names: Sequence[str]) -> Figure:
    """Draw a line per condition over the first path, in a panel per combination of other paths."""
    first, *others = points[0].values
    panels = list(dict.fromkeys(_describe_values(point, others) for point in points))
    columns = min(len(panels), PANELS_PER_ROW)
    rows = -(-len(panels) // columns)
    single_panel = len(panels) == 1  # then the legend goes beside the panel
    size = (WIDTH if single_panel else 3.5 * columns, 3.8 if single_panel else 3.0 * rows + 0.7)
    figure = blank(*size)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    offset, styles = _line_offset(points, len(names)), _styles(names)
    for index, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        in_panel = [point for point in points if _describe_values(point, others) == panel]
        for i, (name, style) in enumerate(styles.items()):
            _line(axes, in_panel, name, name, style, offset * (i - (len(names) - 1) / 2))
        axes.set_title(panel, fontsize=10, parse_math=False)
        if index + columns >= len(panels):
            axes.set_xlabel(first, fontsize=9)
            axes.xaxis.set_tick_params(labelbottom=True)
        if index % columns == 0:
            axes.set_ylabel("accuracy per draw, %", fontsize=9)
        ground(axes)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    location = "outside right center" if single_panel else "outside lower center"
    columns_of_legend = -(-len(names) // -(-len(names) // 4))  # as few rows as with four columns
    options = {"ncols": 1 if single_panel else columns_of_legend, "frameon": False, "fontsize": 9}
    figure.legend(handles, labels, loc=location, **options)
    return figure


def _by_second(points: Sequence[Point], names: Sequence[str]) -> Figure:
    """Draw a line per value of the second path over the first, in panels for the other paths."""
    first, second, *others = points[0].values
    clean = {point.shares["clean"]["accuracy"] for point in points}
    # If only the attack is swept, clean accuracy is constant, so a horizontal line is enough.
    level = len(names) > 1 and len(clean) == 1
    shown = [name for name in names if not (level and name == "clean")]
    panels = list(dict.fromkeys(_describe_values(point, others) for point in points))
    single_panel = len(panels) == 1  # then the conditions are side by side
    rows, columns = (1, len(shown)) if single_panel else (len(shown), len(panels))
    width = 3.9 * columns + (0.4 if rows * columns > 1 else 1.6)
    figure = blank(width, 3.2 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    kinds = list(dict.fromkeys(point.values[second] for point in points))
    offset = _line_offset(points, len(kinds))
    for row, name in enumerate(shown):
        for column, panel in enumerate(panels):
            axes: Axes = grid[0, row] if single_panel else grid[row, column]
            in_panel = [point for point in points if _describe_values(point, others) == panel]
            for i, kind in enumerate(kinds):
                of_kind = [point for point in in_panel if point.values[second] == kind]
                style = (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], "-")
                _line(axes, of_kind, name, kind, style, offset * (i - (len(kinds) - 1) / 2))
            if level:
                _level(axes, 100 * next(iter(clean)))
            axes.set_title(panel, fontsize=10, parse_math=False)
            if single_panel or row == len(shown) - 1:
                axes.set_xlabel(first, fontsize=9)
            if single_panel or column == 0:
                axes.set_ylabel(f"{name} accuracy, %", fontsize=9)
            ground(axes)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    options = {"loc": "outside upper center", "ncols": 2 * columns + 1, "frameon": False}
    figure.legend(handles, labels, fontsize=9, title=second, title_fontsize=9, **options)
    return figure


def _line(
    axes: Axes,
    points: Sequence[Point],
    name: str,
    label: str,
    style: tuple[str, str, str],
    shift: float,
) -> None:
    """Draw one condition over the numbers of the first path, with its intervals."""
    drawn_points = sorted(
        (p for p in points if name in p.shares), key=lambda point: _first(point) or 0.0
    )
    x = [(_first(point) or 0.0) + shift for point in drawn_points]
    y, low, high = (
        [100 * point.shares[name][key] for point in drawn_points]
        for key in ("accuracy", "low", "high")
    )
    color, marker, dashes = style
    line_style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": dashes}
    axes.plot(x, y, label=label, markersize=5, linewidth=1.4, **line_style)
    axes.vlines(x, low, high, color=color, linewidth=1)


def _level(axes: Axes, level: float) -> None:
    axes.axhline(level, color=GRAY, linestyle=":", linewidth=1.4)
    coordinates = ("axes fraction", "data")
    axes.annotate(
        "clean", (1, level), xycoords=coordinates, ha="right", va="bottom", fontsize=9, color=GRAY
    )


def _styles(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Return color, marker, and dashes of each condition.

    `robust` is dashed, so that an attack with the same values stays visible below it. Conditions that
    reuse a color are dash-dotted.
    """
    colors, markers = COLORS[2:], MARKERS[2:]
    styles: dict[str, tuple[str, str, str]] = {}
    for i, name in enumerate(name for name in names if name not in FIXED):
        dashes = "-" if i < len(colors) else "-."
        styles[name] = (colors[i % len(colors)], markers[i % len(markers)], dashes)
    styles |= {"clean": (*FIXED["clean"], "-"), "robust": (*FIXED["robust"], "--")}
    return {name: styles[name] for name in names}


def _line_offset(points: Sequence[Point], lines: int) -> float:
    """Return the horizontal offset between lines, so that their intervals do not overlap."""
    x = sorted({_first(point) or 0.0 for point in points})
    closest = min(b - a for a, b in pairwise(x))
    return min(0.012 * (x[-1] - x[0]), 0.5 * closest / lines)


def number(name: str) -> float | None:
    """Parse a value such as 0.1 or 8/255 as a number; None if it is a word."""
    try:
        return float(Fraction(name))
    except ValueError:
        return None


def _first(point: Point) -> float | None:
    return number(next(iter(point.values.values()), ""))


def _describe_values(point: Point, paths: Sequence[str]) -> str:
    """Describe the values of some paths at a point."""
    pairs = ((path, point.values[path]) for path in paths)
    return ", ".join(value if number(value) is None else f"{path} {value}" for path, value in pairs)
