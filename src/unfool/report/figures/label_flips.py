"""The figure of label flips under guidance, for the toy world of two Gaussians."""

from collections.abc import Sequence

import numpy as np

from unfool.report.figures.style import BLUE, GRAY, RUST, TEAL, WIDTH, blank, ground, legend, png
from unfool.statistics import wilson


def label_flips(
    weights: Sequence[float], levels: Sequence[float], shares: np.ndarray, runs: int
) -> bytes:
    """What `toy.two_gaussians.label_flips` returned, against the weight, a line per level.

    Args:
        weights: Of the guide.
        levels: Of the classifier's noise.
        shares: Label-flip probabilities (levels, weights).
        runs: Runs behind each, for the 95 % intervals.
    """
    figure = blank(WIDTH, 3.6)
    axes = figure.subplots()
    marks = ("o", "s", "^", "D", "v", "P", "X")
    for i, (level, line) in enumerate(zip(levels, shares, strict=True)):
        color = (BLUE, TEAL, RUST, GRAY)[i % 4]
        spread = [wilson(round(share * runs), runs) for share in line]
        low, high = ([100 * getattr(s, side) for s in spread] for side in ("low", "high"))
        axes.fill_between(weights, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(
            weights, 100 * line, color=color, marker=marks[i % 7], linewidth=1.6, markersize=5,
            linestyle=("-", "--", "-.", ":")[i % 4], label=f"noise level {level:g}",
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    ground(axes, "guidance weight", "label-flip probability, %")
    legend(figure, axes, min(len(levels), 5))
    return png(figure)
