"""The figure of a self-test: measured minus true values."""

from collections.abc import Sequence

from unfool.evaluation.selftest import Check
from unfool.report import document
from unfool.report.figures.style import BLUE, EDGE, INK, RUST, WIDTH, blank, draw, ground


def gaps(checks: Sequence[Check]) -> document.Figure:
    """Draw how much each measured value differs from the true one, and how much it may differ."""
    shown = [check for check in checks if check.unit in ("accuracy", "coverage", "times")]
    figure = blank(WIDTH, 0.9 + 0.19 * len(shown))
    axes = figure.subplots()
    for y, check in enumerate(shown):
        low, measured, high = (
            100 * (v - check.truth) for v in (check.low, check.measured, check.high)
        )
        axes.plot([low, high], [y, y], EDGE, linewidth=5, solid_capstyle="butt", zorder=1)
        marker, color, size = ("o", BLUE, 5) if check.ok else ("X", RUST, 8)
        axes.plot([measured], [y], marker=marker, color=color, markersize=size, zorder=3)
    names = [f"{check.part}: {check.what}" for check in shown]
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=2)
    ground(axes, "measured minus true, percentage points", lines="x")
    axes.tick_params(axis="y", labelsize=7.5)
    caption = (
        "The difference between the measured and the true value, in percentage points. Bars show "
        "the values allowed. Checks of counts are only in the table."
    )
    return document.Figure("selftest.png", "Found less truth", caption, draw(figure))
