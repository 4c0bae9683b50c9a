"""The figure of a certification: certified accuracy against the radius."""

import numpy as np

from unfool.report import document
from unfool.report.figures.style import BLUE, GRAY, TEAL, WIDTH, blank, draw, ground, legend
from unfool.results.report_json import CertificationSummary
from unfool.statistics import wilson


def certified_accuracy(summary: CertificationSummary) -> document.Figure:
    """Draw certified accuracy against the radius, with pointwise 95 % intervals over images."""
    images, reach = summary["images"], summary["reach"]
    radii = sorted(row["radius"] for row in images if row["answer"] == row["label"])
    # The curve has a step at each image's radius, and ends at the largest provable radius.
    edges = np.array([0.0, *(radius for radius in radii if radius < reach), reach])
    shares = [wilson(len(radii) - i, len(images)) for i in range(len(edges) - 1)]
    accuracy, low, high = (100 * np.array(bound) for bound in zip(*shares, strict=True))
    figure = blank(WIDTH, 3.6)
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
        reach,
        color=GRAY,
        linestyle=":",
        linewidth=1.6,
        label="largest radius that the draws can prove",
    )
    axes.set_xlim(0, 1.05 * reach)
    axes.set_ylim(0, 103)
    ground(axes, "radius, Euclidean length in [0, 1] pixels", "images, %")
    legend(figure, axes, 2)
    caption = (
        "The share of images whose right answer is certified for all changes shorter than the "
        "radius. The band is the pointwise 95 % confidence interval over images. Dashed: the share "
        "with the right answer, certified or not. Dotted: the radius of an image for which all "
        "draws agree; only more draws can prove a larger one."
    )
    title = "Certified accuracy against the radius"
    return document.Figure("figures/certified.png", title, caption, draw(figure))
