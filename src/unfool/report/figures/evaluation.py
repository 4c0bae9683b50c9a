"""The figures of an evaluation: accuracy, classes, submissions, and the loss of each attack.

Each figure is drawn on its own object, so global state does not change. Each is readable without color:
readings differ by marker, right and wrong by a sign, and lines by dashes.
"""

from typing import Any

import numpy as np

from unfool.report import document
from unfool.report.evaluation_tables import SUBMITTED, columns, rows, weakest
from unfool.report.figures.style import (
    BLUE,
    GRAY,
    INK,
    RUST,
    STRIPE,
    TEAL,
    WIDTH,
    blank,
    draw,
    ground,
    interval,
    legend,
    percent_axis,
    short,
)
from unfool.results.report_json import Summary

STYLES: dict[str, dict[str, Any]] = {
    "undefended": {"marker": "x", "color": GRAY, "markersize": 6, "markeredgewidth": 1.6},
    "per_draw": {"marker": "o", "color": BLUE, "markersize": 6.5},
    "majority": {"marker": "s", "color": TEAL, "markersize": 6, "markerfacecolor": "white"},
    "all_draws": {"marker": "v", "color": RUST, "markersize": 6.5},
}


def accuracy(summary: Summary) -> document.Figure:
    """Draw the accuracy of every reading under every condition, with 95 % intervals."""
    lines, readings = rows(summary), columns(summary)
    height = 0.95 + len(lines) * (0.22 + 0.15 * len(readings))
    figure = blank(WIDTH, height)
    axes = figure.subplots()
    spread = np.linspace(-0.27, 0.27, len(readings)) if len(readings) > 1 else [0.0]
    for reading, shift in zip(readings, spread, strict=True):
        for y, line in enumerate(lines):
            title = reading.title if y == 0 else None
            interval(axes, line.shares[reading.key], y + shift, STYLES[reading.key], title)
    percent_axis(axes, [line.title for line in lines], "accuracy, %")
    for y, (tick, line) in enumerate(zip(axes.get_yticklabels(), lines, strict=True)):
        tick.set_fontweight("bold" if line.name == "robust" else "normal")
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color=STRIPE, zorder=0, linewidth=0)
    if len(readings) > 1:
        legend(figure, axes, len(readings))
    caption = (
        "Farther to the right means that the model is right more often. Bars are 95 % confidence "
        "intervals."
    )
    if summary["attacks"]:
        caption += (
            " The distance between the clean row and the robust row is the effect of the attack."
        )
    if len(readings) > 2:
        caption += (
            " Where the accuracies of one row differ, the model's own randomness decides the "
            "answer."
        )
    return document.Figure("figures/accuracy.png", "Accuracy by condition", caption, draw(figure))


def classes(summary: Summary) -> document.Figure:
    """Draw the accuracy of each class, clean and under the attack that counts, with 95 % intervals."""
    shown = weakest(summary)
    figure = blank(WIDTH, 0.95 + 0.42 * len(shown))
    axes = figure.subplots()
    kinds = [("clean", -0.16, {"marker": "o", "color": BLUE, "markersize": 6})]
    if summary["attacks"]:
        style = {"marker": "v", "color": RUST, "markersize": 6.5, "markerfacecolor": "white"}
        kinds.append(("robust", 0.16, style))
    for key, shift, style in kinds:
        for y, row in enumerate(shown):
            interval(axes, row[key], y + shift, style, key if y == 0 else None)
    percent_axis(axes, [short(row["name"]) for row in shown], "accuracy per draw, %")
    if len(kinds) > 1:
        legend(figure, axes, len(kinds))
    many = len(summary["classes"])
    caption = "Each class, clean" + (
        " and under the attack that counts" if summary["attacks"] else ""
    )
    caption += (
        ". Bars are 95 % confidence intervals: with few images of a class they are wide, and "
        "classes whose bars overlap cannot be ranked. Classes without images in the run are left "
        "out."
    )
    if len(shown) < many:
        caption += f" Shown are the {len(shown)} least robust of {many}."
    return document.Figure("figures/classes.png", "Accuracy by class", caption, draw(figure))


def resubmission(summary: Summary) -> document.Figure:
    """Draw how often all of m answers to an image are right against m, with 95 % intervals."""
    curve = summary["resubmission"]
    times = curve["submissions"]
    figure = blank(WIDTH, 3.4)
    axes = figure.subplots()
    styles: dict[str, dict[str, Any]] = {
        "clean": {"color": BLUE, "marker": "o", "linestyle": "-"},
        "random": {"color": GRAY, "marker": "s", "linestyle": ":"},
        "robust": {"color": RUST, "marker": "v", "linestyle": "--"},
    }
    shown = [(name, style) for name, style in styles.items() if name in curve]
    for name, style in shown:
        right, low, high = (
            [100 * share[key] for share in curve[name]] for key in ("accuracy", "low", "high")
        )
        axes.fill_between(times, low, high, color=style["color"], alpha=0.15, linewidth=0)
        label = SUBMITTED[name] if name != "robust" else "robust (the attack that counts)"
        axes.plot(times, right, linewidth=1.6, markersize=5, label=label, clip_on=False, **style)
    axes.set_ylim(0, 100)
    axes.set_xlim(1, max(times[-1], 2))
    axes.xaxis.get_major_locator().set_params(integer=True)  # pyright: ignore
    ground(axes, "submissions of the same image", "all answers right, %")
    legend(figure, axes, len(shown))
    caption = (
        "How often all answers are right if the same image is submitted once, twice, and so on. "
        "Bands are 95 % confidence intervals. Where the lines of clean and attacked images fall "
        "together, the model's own randomness causes the errors, without any attack."
    )
    return document.Figure("figures/resubmission.png", "Submitted again", caption, draw(figure))


def loss_curves(summary: Summary) -> document.Figure:
    """Draw the loss over the steps of each attack, for images that stay right and for the others."""
    shown = summary["loss_curves"]
    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    width = WIDTH if across > 1 else 0.7 * WIDTH
    figure = blank(width, 0.6 + 2.4 * down)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    losses = {row["label"]: row.get("loss", "margin") for row in summary["spec"]["attacks"]}
    kinds = {"right": ("left right", BLUE, "o", "-"), "wrong": ("made wrong", RUST, "v", "--")}
    for axes, row in zip(panels, shown, strict=False):
        counts = []
        for key, (_, color, marker, dashes) in kinds.items():
            band = row[key]
            counts.append(f"{band['n']} {kinds[key][0]}")
            x = 100 * (np.arange(len(band["mean"])) + 0.5) / max(len(band["mean"]), 1)
            if band["low"]:
                low, high = band["low"], band["high"]
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(x, band["mean"], color=color, marker=marker, markersize=3, linestyle=dashes)
        title = f"{short(row['name'])}\n{', '.join(counts)}"
        axes.set_title(title, fontsize=9, color=INK, parse_math=False)
        axes.set_xlim(0, 100)
        ground(axes, y=f"loss ({losses.get(row['name'], 'margin')})")
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    figure.supxlabel("share of the attack's steps, %", fontsize=9, color=INK)
    for label, color, marker, dashes in kinds.values():
        panels[0].plot(
            [], [], color=color, marker=marker, linestyle=dashes, label=f"images {label}"
        )
    legend(figure, panels[0], 2)
    caption = (
        "The loss that each attack maximizes, from its first steps (left) to its last, averaged "
        "over its draws, restarts, and targets. An image is not broken if more than half of its "
        "answers are right. Bands are 95 % confidence intervals over images. If the line of images "
        "that are not broken still rises at its end, the attack needs more steps."
    )
    title = "Loss over the steps of each attack"
    return document.Figure("figures/loss_curves.png", title, caption, draw(figure))
