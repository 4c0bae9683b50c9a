"""The figures of a report, each drawn to the bytes of a PNG file.

They are drawn on `Figure` objects, so nothing global is touched. Each reads without color: readings
differ by marker, right and wrong by a sign, lines by dashes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unfool.report.examples import Gallery
from unfool.report.rows import SUBMITTED, columns, rows, weakest
from unfool.report.style import (
    BLUE,
    GRAY,
    INK,
    RUST,
    TEAL,
    WIDTH,
    interval,
    legend,
    percent_axis,
    png,
    tidy,
)
from unfool.statistics import wilson

GREEN, RED = "#1b6e35", "#b01f1f"
STYLES: dict[str, dict[str, Any]] = {
    "undefended": {"marker": "x", "color": GRAY, "markersize": 6, "markeredgewidth": 1.6},
    "per_draw": {"marker": "o", "color": BLUE, "markersize": 6.5},
    "majority": {"marker": "s", "color": TEAL, "markersize": 6, "markerfacecolor": "white"},
    "all_draws": {"marker": "v", "color": RUST, "markersize": 6.5},
}


def accuracy(summary: Mapping[str, Any]) -> bytes:
    """Accuracy of every reading under every condition, with 95 % intervals."""
    lines, readings = rows(summary), columns(summary)
    height = 0.95 + len(lines) * (0.22 + 0.15 * len(readings))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    spread = np.linspace(-0.27, 0.27, len(readings)) if len(readings) > 1 else [0.0]
    for reading, shift in zip(readings, spread, strict=True):
        for place, line in enumerate(lines):
            title = reading.title if place == 0 else None
            interval(axes, line.shares[reading.key], place + shift, STYLES[reading.key], title)
    percent_axis(axes, [line.title for line in lines], "accuracy, %")
    for place, (tick, line) in enumerate(zip(axes.get_yticklabels(), lines, strict=True)):
        tick.set_fontweight("bold" if line.name == "robust" else "normal")
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="#f4f4f2", zorder=0, linewidth=0)
    if len(readings) > 1:
        legend(figure, axes, len(readings))
    return png(figure)


def classes(summary: Mapping[str, Any]) -> bytes:
    """Accuracy of each class, clean and under the attack that counts, with 95 % intervals."""
    shown = weakest(summary)
    figure = Figure(figsize=(WIDTH, 0.95 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    kinds = [("clean", -0.16, {"marker": "o", "color": BLUE, "markersize": 6})]
    if summary["attacks"]:
        style = {"marker": "v", "color": RUST, "markersize": 6.5, "markerfacecolor": "white"}
        kinds.append(("robust", 0.16, style))
    for key, shift, style in kinds:
        for place, row in enumerate(shown):
            interval(axes, row[key], place + shift, style, key if place == 0 else None)
    percent_axis(axes, [_short(row["name"]) for row in shown], "accuracy per draw, %")
    if len(kinds) > 1:
        legend(figure, axes, len(kinds))
    return png(figure)


def resubmission(summary: Mapping[str, Any]) -> bytes:
    """How often all of m answers to a picture are right, over m, with 95 % intervals."""
    curve = summary["resubmission"]
    times = curve["submissions"]
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
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
    axes.set_xlabel("submissions of the same picture", fontsize=9, color=INK)
    axes.set_ylabel("all answers right, %", fontsize=9, color=INK)
    axes.grid(color="#e2e2e0", linewidth=0.7)
    tidy(axes)
    legend(figure, axes, len(shown))
    return png(figure)


def climb(summary: Mapping[str, Any]) -> bytes:
    """The loss over the steps of each attack, of the pictures it left right and of the others."""
    shown = summary["loss_curves"]
    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    width = WIDTH if across > 1 else 0.7 * WIDTH
    figure = Figure(figsize=(width, 0.6 + 2.4 * down), layout="constrained")
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
        title = f"{_short(row['name'])}\n{', '.join(counts)}"
        axes.set_title(title, fontsize=9, color=INK, parse_math=False)
        axes.set_xlim(0, 100)
        axes.set_ylabel(f"loss ({losses.get(row['name'], 'margin')})", fontsize=9, color=INK)
        axes.grid(color="#e2e2e0", linewidth=0.7)
        tidy(axes)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    figure.supxlabel("part of the attack's steps, %", fontsize=9, color=INK)
    for label, color, marker, dashes in kinds.values():
        panels[0].plot(
            [], [], color=color, marker=marker, linestyle=dashes, label=f"pictures {label}"
        )
    legend(figure, panels[0], 2)
    return png(figure)


def confidence(gallery: Gallery) -> bytes:
    """Confidence along the purification, of every picture and their mean, clean and attacked.

    A panel each for the true class, the adversarial class (what the classifier without its defense
    answers to the attacked picture, where that is another; of corruptions: the mistaken class), and
    the class it is surest of.
    """
    arrays, times = gallery.arrays, gallery.arrays["times"]
    every = np.ones(len(gallery), dtype=bool)
    panels = [("sure", "in the true class", every)]
    if "clean_fooled" in arrays:
        fell = arrays["attacked_bare"] != arrays["label"]
        wrong = "adversarial" if gallery.changed == "attacked" else "mistaken"
        panels += [("fooled", f"in the {wrong} class", fell)] if fell.any() else []
        panels.append(("surest", "in the class it is surest of", every))
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (kind, title, which) in zip(row, panels, strict=True):
        for key, color, dashes in (("clean", BLUE, "-"), ("attacked", RUST, "--")):
            sure = 100 * arrays[f"{key}_{kind}"][which]
            axes.plot(times, sure.T, color=color, linestyle=dashes, linewidth=0.7, alpha=0.4)
            mean = sure.mean(0)
            told = gallery.changed if key == "attacked" else key
            axes.plot(times, mean, color=color, linestyle=dashes, linewidth=2.6, label=told)
        axes.set_title(f"{title} ({which.sum()})", fontsize=9, color=INK)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlim(float(times.max()), 0)
        axes.set_ylim(-3, 103)
        axes.grid(color="#e2e2e0", linewidth=0.7)
        tidy(axes)
    row[0].set_ylabel("confidence, %", fontsize=9, color=INK)
    figure.supxlabel("diffusion time, from t* to 0 (purified)", fontsize=9, color=INK)
    legend(figure, row[0], 2)
    return png(figure)


def pictures(gallery: Gallery, most: int = 8) -> bytes:
    """A grid: of each picture clean, attacked, the difference, and both purified, with answers."""
    arrays, count, factor = gallery.arrays, min(len(gallery), most), magnification(gallery, most)
    difference = 0.5 + factor * (arrays["attacked"] - arrays["clean"])
    seen = "bare" if "clean_bare" in arrays else "answer"
    grid = [
        ("clean", arrays["clean"], arrays[f"clean_{seen}"]),
        (gallery.changed, arrays["attacked"], arrays[f"attacked_{seen}"]),
        (f"difference \u00d7 {factor:g}", difference, None),
    ]
    for key in ("clean", "attacked"):
        if f"{key}_purified" in arrays:
            title = f"{gallery.changed if key == 'attacked' else key},\npurified"
            grid.append((title, arrays[f"{key}_purified"], arrays[f"{key}_answer"]))
    figure = Figure(figsize=(1.3 + 1.05 * len(grid), 0.45 + 1.26 * count), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # pyright: ignore
    cells = figure.subplots(count, len(grid), squeeze=False)
    for row in range(count):
        truth = int(arrays["label"][row])
        for column, (title, images, answers) in enumerate(grid):
            axes: Axes = cells[row, column]
            _show(axes, images[row])
            if row == 0:
                axes.set_title(title, fontsize=9, color=INK)
            if answers is not None:
                _answer(axes, gallery.name(int(answers[row])), int(answers[row]) == truth)
            else:
                size = gallery.sizes[row]
                said = f"size {size:.3g}" if size else "no change"
                axes.set_xlabel(said, fontsize=8.5, color=INK, labelpad=2)
        about = f"true: {gallery.name(truth)}\nno. {arrays['index'][row]}\n{_short(gallery.chosen[row])}"
        side: Axes = cells[row, 0]
        side.set_ylabel(
            about, rotation=0, ha="right", va="center", fontsize=8, color=INK, parse_math=False
        )
    return png(figure)


def magnification(gallery: Gallery, most: int = 8) -> float:
    """By how much the figure of pictures magnifies the difference: 1, 2, 5, 10, 20, ..."""
    delta = gallery.arrays["attacked"][:most] - gallery.arrays["clean"][:most]
    largest = float(np.abs(delta).max())
    steps = [a * 10**b for b in range(4) for a in (1, 2, 5)]
    return max([step for step in steps if step * largest <= 0.5 + 1e-4], default=1)


def certified(summary: Mapping[str, Any]) -> bytes:
    """Certified accuracy over the radius, with pointwise 95 % intervals over images."""
    images, reach = summary["images"], summary["reach"]
    radii = sorted(row["radius"] for row in images if row["answer"] == row["label"])
    # A step for each radius at which a picture falls; nothing is said beyond the reach.
    edges = np.array([0.0, *(radius for radius in radii if radius < reach), reach])
    shares = [wilson(len(radii) - i, len(images)) for i in range(len(edges) - 1)]
    accuracy, low, high = (100 * np.array(bound) for bound in zip(*shares, strict=True))
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(
        edges,
        [*low, low[-1]],
        [*high, high[-1]],
        step="post",
        color=BLUE,
        alpha=0.16,
        linewidth=0,
        label="95 % interval",
    )
    axes.stairs(
        accuracy, edges, baseline=None, color=BLUE, linewidth=2, label="certified and right"
    )
    clean = 100 * summary["clean"]["accuracy"]
    axes.axhline(clean, color=TEAL, linestyle="--", linewidth=1.3, label="right, certified or not")
    axes.axvline(
        reach, color=GRAY, linestyle=":", linewidth=1.6, label="the most that the draws can prove"
    )
    axes.set_xlim(0, 1.05 * reach)
    axes.set_ylim(0, 103)
    axes.set_xlabel("radius, Euclidean length in [0, 1] pixels", fontsize=9, color=INK)
    axes.set_ylabel("pictures, %", fontsize=9, color=INK)
    axes.grid(color="#e2e2e0", linewidth=0.7)
    tidy(axes)
    legend(figure, axes, 2)
    return png(figure)


def _show(axes: Axes, image: np.ndarray) -> None:
    image = np.clip(image, 0, 1)
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
    smooth = "antialiased" if min(pixels.shape[:2]) > 100 else "nearest"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation=smooth)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(color="#c9c9c6", linewidth=0.6)


def _answer(axes: Axes, name: str, right: bool) -> None:
    sign = "\u2713" if right else "\u2717"
    color = GREEN if right else RED
    size = 8.5 if len(name) <= 9 else 7
    axes.set_xlabel(f"{sign} {name}", fontsize=size, color=color, labelpad=2, parse_math=False)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
