"""The figure of a comparison: accuracies beside their paired differences."""

from collections.abc import Sequence
from typing import Any

from unfool.report import document
from unfool.report.figures.style import (
    BLUE,
    GRAY,
    INK,
    RUST,
    STRIPE,
    WIDTH,
    blank,
    draw,
    ground,
    interval,
    legend,
    percent_axis,
)
from unfool.results.compare import Paired
from unfool.results.gates import Gate
from unfool.results.report_json import share_entry


def paired_accuracy(rows: Sequence[Paired], gates: Sequence[Gate] = ()) -> document.Figure:
    """Draw the accuracy of both runs, the paired differences, and the bounds."""
    figure = blank(WIDTH + 1.2, 1.25 + 0.42 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    styles: dict[str, dict[str, Any]] = {
        "A": {"marker": "o", "color": GRAY, "markersize": 6},
        "B": {"marker": "s", "color": BLUE, "markersize": 5.5, "markerfacecolor": "white"},
    }
    for (name, style), shift in zip(styles.items(), (-0.14, 0.14), strict=True):
        for y, row in enumerate(rows):
            share = share_entry(row.a if name == "A" else row.b)
            interval(left, share, y + shift, style, None if y else name)
    style = {"marker": "D", "color": INK, "markersize": 5}
    for y, row in enumerate(rows):
        mean, low, high = row.change
        interval(right, {"accuracy": mean, "low": low, "high": high}, y, style, None)
    right.axvline(0, color=INK, linewidth=0.8, zorder=1)
    y_of_row = {row.name: y for y, row in enumerate(rows)}
    for gate in gates:
        is_minimum = gate.name == "min-robust"
        axes, bound = (left, 100 * gate.bound) if is_minimum else (right, -100 * gate.bound)
        ends = [y_of_row[gate.condition] - 0.4, y_of_row[gate.condition] + 0.4]
        axes.plot([bound, bound], ends, color=RUST, linewidth=1.4, linestyle="--", zorder=2)
    most = max(abs(bound) for row in rows for bound in row.change)
    most = max(most, *(gate.bound for gate in gates if gate.name == "max-drop"), 0.0)
    right.set_xlim(-108 * most, 108 * most)
    ground(right, "B - A, percentage points", lines="x")
    percent_axis(left, [title_of(row) for row in rows], "accuracy per draw, %")
    for tick, row in zip(left.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.name == "robust" else "normal")
    for y in range(1, len(rows), 2):
        for axes in (left, right):
            axes.axhspan(y - 0.5, y + 0.5, color=STRIPE, zorder=0, linewidth=0)
    legend(figure, left, 2)
    caption = "Accuracy per draw of A and B, and the paired differences, with 95 % intervals."
    caption += " Dashed: the bounds." if gates else ""
    return document.Figure("compare.png", "A and B", caption, draw(figure))


def title_of(row: Paired) -> str:
    """Return the name of a condition for readers."""
    return "random noise" if row.name == "random" else row.name
