"""The figures of `unfool analyze compression` and `unfool analyze critical-eps`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unfool.analysis.compression import KINDS
from unfool.analysis.critical_eps import CriticalEps
from unfool.report.document import Drawing
from unfool.report.figures.style import (
    BLUE,
    GRAY,
    INK,
    RUST,
    WIDTH,
    blank,
    draw,
    ground,
    legend,
    short,
)

STYLES: dict[str, dict[str, Any]] = {
    "random": {"marker": "o", "color": BLUE},
    "adversarial": {"marker": "s", "color": RUST},
}

LEAST_RATE_ON_LOG_SCALE = 0.02
RATE_TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20)


def rates(summaries: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw the rates of each defense against perturbation size, with 95 % intervals."""
    columns = min(3, len(summaries))
    lines = -(-len(summaries) // columns)
    figure = blank(max(4.6, 3.1 * columns + 0.5), 2.5 * lines + 0.6)
    panels = np.asarray(
        figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True), dtype=object
    ).ravel()
    highest = max(
        row[kind]["rate"]["high"]
        for s in summaries.values()
        for row in s["sizes"]
        for kind in KINDS
    )
    for index, (panel, (name, summary)) in enumerate(zip(panels, summaries.items(), strict=False)):
        rows = sorted(summary["sizes"], key=lambda row: row["size"])
        sizes = [row["size"] for row in rows]
        for kind in KINDS:
            mean, low, high = (
                [row[kind]["rate"][k] for row in rows] for k in ("mean", "low", "high")
            )
            panel.fill_between(
                sizes, low, high, color=STYLES[kind]["color"], alpha=0.15, linewidth=0
            )
            panel.plot(sizes, mean, linewidth=1.4, markersize=5, label=kind, **STYLES[kind])
        panel.axhline(1, color=INK, linewidth=0.8, linestyle="--", zorder=1)
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [f"{size:g}" for size in sizes])
        panel.set_ylim(0, 1.05 * max(1.0, highest))
        panel.set_title(short(name), fontsize=9.5, color=INK, loc="left")
        bottom, left = index + columns >= len(summaries), index % columns == 0
        ground(panel, "size / budget" if bottom else "", "compression rate" if left else "")
        panel.tick_params(labelbottom=bottom)
    for panel in panels[len(summaries) :]:
        panel.axis("off")
    legend(figure, panels[0], 2)
    return draw(figure)


def against_robustness(points: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw each run's accuracies under attack against the rate of its purifier.

    Rates are on a logarithmic scale, unless one is near 0.

    Args:
        points: For each run, the mean `rates` by kind of direction, its `robust` share, and its share
            under DW-box as `known`, or None.
    """
    figure = blank(WIDTH + 1.6, 4.6)
    panels = np.asarray(figure.subplots(1, 2, sharey=True), dtype=object)
    highest = max(p[key]["high"] for p in points for key in ("robust", "known") if p[key])
    styles = {
        "robust": {"marker": "o", "color": BLUE, "label": "robust (noise unknown)"},
        "known": {"marker": "s", "color": RUST, "label": "DW-box (noise known)"},
    }
    for panel, kind in zip(panels, KINDS, strict=True):
        for key, style in styles.items():
            shown = [point for point in points if point[key] is not None]
            if not shown:
                continue
            x = [point["rates"][kind] for point in shown]
            y = [100 * point[key]["accuracy"] for point in shown]
            for rate, point in zip(x, shown, strict=True):
                ends = [100 * point[key]["low"], 100 * point[key]["high"]]
                panel.plot([rate, rate], ends, color=style["color"], linewidth=1, alpha=0.5)
            panel.plot(x, y, linestyle="", markersize=6, zorder=3, clip_on=False, **style)
        for number, point in enumerate(points, 1):
            position = point["rates"][kind], 100 * point["robust"]["high"]
            panel.annotate(
                str(number), position, (0, 3), textcoords="offset points", fontsize=8, color=INK,
                ha="center",
            )  # fmt: skip
        panel.axvline(1, color=GRAY, linewidth=0.8, linestyle="--", zorder=1)
        ends = [1.0, *(point["rates"][kind] for point in points)]
        left, right = min(ends), max(ends)
        if left > LEAST_RATE_ON_LOG_SCALE:
            panel.set_xscale("log")
            panel.set_xlim(0.9 * left, 1.1 * right)
            panel.set_xticks([t for t in RATE_TICKS if 0.9 * left <= t <= 1.1 * right])
            panel.xaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
        else:
            panel.set_xlim(0, 1.1 * right)
        panel.set_ylim(0, min(100 * highest + 5, 100))
        name = "accuracy under attack, %" if panel is panels[0] else ""
        ground(panel, f"compression rate, {kind}", name)
    legend(figure, panels[0], 2)
    return draw(figure)


def surviving(result: CriticalEps) -> Drawing:
    """Draw the share of unbroken images against the budget."""
    figure = blank(WIDTH, 3.4)
    panel = figure.subplots()
    unit = 255 if result.norm == "linf" else 1
    ordered = np.sort(result.estimates[np.isfinite(result.estimates)]) * unit
    count, largest = len(result.high), result.largest * unit
    steps = [0.0, *ordered, largest]
    unbroken = [1.0, *(1 - (index + 1) / count for index in range(len(ordered)))]
    panel.step(
        steps, [100 * share for share in (*unbroken, unbroken[-1])], where="post", color=BLUE
    )
    budget = result.eps * unit
    panel.axvline(budget, color=RUST, linewidth=1.2, linestyle="--")
    panel.annotate(
        "the spec's eps", (budget, 100), (4, -10), textcoords="offset points", fontsize=8.5
    )
    panel.set_xlim(0, largest)
    panel.set_ylim(0, 100)
    name = f"eps of {result.norm}" + (" x 255" if unit == 255 else "")
    ground(panel, name, "images not broken, %")
    return draw(figure)
