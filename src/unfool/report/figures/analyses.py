"""The figures of `unfool analyze gradients`, `purification`, and `samples`."""

import numpy as np

from unfool.analysis.gradients import Gradients
from unfool.analysis.purification import Purification
from unfool.analysis.samples import Samples
from unfool.report.document import Drawing
from unfool.report.figures.style import BLUE, DARK, INK, RUST, TEAL, blank, draw, ground, show, tidy

METRICS = {"l2": "l2", "linf": "linf", "ssim": "SSIM", "lpips": "LPIPS"}
SHOWN = 32


def cosines(result: Gradients) -> Drawing:
    """Draw the cosine between every two gradients, and each image's cosine with the exact one."""
    names, shown = [variant.name for variant in result.variants], result.cosines()
    figure = blank(9.6, 1.5 + 0.42 * len(names))
    left, right = figure.subplots(1, 2)
    left.imshow(shown.mean(2), cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for i, row in enumerate(shown.mean(2)):
        for j, value in enumerate(row):
            left.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=DARK)
    left.set_xticks(range(len(names)), names, rotation=35, ha="right")
    left.set_yticks(range(len(names)), names)
    for y, values in enumerate(shown[:, 0]):
        spread = y + np.linspace(-0.16, 0.16, len(values))
        right.plot(values, spread, "o", color=BLUE, markersize=3.5, alpha=0.55, clip_on=False)
        right.plot(values.mean(), y, "|", color=RUST, markersize=16, markeredgewidth=2)
    right.set_yticks(range(len(names)), [])
    right.set_ylim(len(names) - 0.5, -0.5)
    right.set_xlim(min(0.0, float(shown[:, 0].min()) - 0.03), 1)
    tidy(left)
    ground(right, "cosine with the exact gradient", lines="x")
    return draw(figure)


def distances(result: Purification, metrics: list[str]) -> Drawing:
    """Draw the distance of each image to the clean one, with a panel for each metric."""
    names = list(result.distances)
    figure = blank(3.3 * len(metrics) + 1.6, 1.3 + 0.4 * len(names))
    panels = np.atleast_1d(np.asarray(figure.subplots(1, len(metrics)), dtype=object))
    for panel, metric in zip(panels, metrics, strict=True):
        for y, name in enumerate(names):
            values = result.distances[name][metric].mean(1)
            spread = y + np.linspace(-0.16, 0.16, len(values))
            color = BLUE if name.startswith("clean") else TEAL
            panel.plot(values, spread, "o", color=color, markersize=3.2, alpha=0.5, clip_on=False)
            panel.plot(values.mean(), y, "|", color=RUST, markersize=17, markeredgewidth=2)
        panel.set_yticks(range(len(names)), names if panel is panels[0] else [])
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlim(left=min(0, *panel.get_xlim()))
        panel.locator_params(axis="x", nbins=5)
        ground(panel, METRICS[metric], lines="x")
    return draw(figure)


def purified_images(result: Purification) -> Drawing:
    """Draw the first images, with a row for each version of them."""
    names, count = list(result.images), len(next(iter(result.images.values())))
    figure = blank(1.6 + 1.05 * count, 1.1 * len(names))
    panels = np.asarray(figure.subplots(len(names), count, squeeze=False), dtype=object)
    for row, name in zip(panels, names, strict=True):
        for panel, image in zip(row, result.images[name], strict=True):
            show(panel, image)
            tidy(panel)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, color=INK)
    return draw(figure)


def generated_images(result: Samples) -> Drawing:
    """Draw the first generated images of each model."""
    figure = blank(9.6, 1.7 * len(result.images))
    panels = np.atleast_1d(np.asarray(figure.subplots(len(result.images)), dtype=object))
    for panel, (name, images) in zip(panels, result.images.items(), strict=True):
        few = images[:SHOWN].cpu().numpy().transpose(0, 2, 3, 1)
        height, width, channels = few.shape[1:]
        gap = max(1, height // 8)
        padded = np.pad(few, ((0, -len(few) % 16), (0, gap), (0, gap), (0, 0)), constant_values=1)
        lines = padded.reshape(-1, 16, height + gap, width + gap, channels).transpose(0, 2, 1, 3, 4)
        mosaic = lines.reshape(-1, 16 * (width + gap), channels)
        panel.imshow(mosaic.squeeze(), cmap="gray", vmin=0, vmax=1)
        panel.set_title(name, fontsize=9.5, color=INK, loc="left")
        panel.axis("off")
    return draw(figure)
