"""The report of `unfool analyze purification`: distances to the clean picture, and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from unfool.analysis.purification import Purification
from unfool.report.document import Part, write_sheet
from unfool.report.rows import cell
from unfool.report.style import BLUE, INK, RUST, TEAL, png, tidy
from unfool.report.tables import markdown
from unfool.runtime.files import write_bytes

TITLES = {"l2": "l2", "linf": "linf", "ssim": "SSIM", "lpips": "LPIPS"}
CAPTION = (
    "Distance to the clean picture, picture by picture (mean over draws), and the mean. Of SSIM more is "
    "nearer."
)
SHOWN = "The first pictures, on the first draw, as the classifier meets them (cut to [0, 1] here)."


def write_purification(folder: Path, found: Purification, about: Mapping[str, Any]) -> str:
    """Write `purification.{json,md,html,npz}` and two figures into `folder`.

    Args:
        folder: Where to.
        found: What `analysis.purification.purification` returned.
        about: `command`, and whatever is written beside the numbers.

    Returns:
        The table in Markdown, and the sentences below it.
    """
    summary = found.summary()
    metrics = list(next(iter(found.distances.values())))
    heads = ("picture", *(TITLES[metric] for metric in metrics), "right")
    rows = [
        [row["row"], *(_mean(row.get(metric)) for metric in metrics), cell(row["right"])]
        for row in summary["rows"]
    ]
    said, after = _said(summary), _after(summary)
    table, title = markdown(heads, rows), "What purification does to pictures"
    figures = {
        "purification": (_figure(found, metrics), CAPTION),
        "purification-pictures": (_pictures(found), SHOWN),
    }
    parts = [f"# {title}", said, table, *after]
    page = [Part(said), Part(heads=heads, rows=rows), *(Part(line) for line in after)]
    for name, (drawn, caption) in figures.items():
        write_bytes(folder / f"{name}.png", drawn)
        parts += [f"![{name}]({name}.png)", caption]
        page.append(Part(caption, drawn))
    page.append(Part(about["command"], code=True))
    arrays = {
        f"{row}/{metric}": values
        for row, measured in found.distances.items()
        for metric, values in measured.items()
    }
    arrays |= {f"{row}/right": values for row, values in found.right.items()}
    arrays |= {f"{row}/pictures": values for row, values in found.pictures.items()}
    arrays["left"] = found.left
    write_sheet(folder, "purification", title, parts, page, about, summary, arrays)
    return "\n\n".join([table, *after])


def _said(summary: Mapping[str, Any]) -> str:
    sigma = summary["pixel_noise"]
    noise = (
        f"Noise only is the defense's forward noise, of deviation {sigma:.3f} of [0, 1], with nothing "
        "taken away."
        if sigma
        else "This purifier puts no noise on the picture, so there is no control of noise alone."
    )
    return (
        f"{summary['images']} pictures, {summary['draws']} draws of the defense's noise each, the same "
        "for clean and attacked ones. Distances are to the clean picture; means over pictures with 95 % "
        f"intervals. Right is the classifier on that picture, per draw. {noise}"
    )


def _after(summary: Mapping[str, Any]) -> list[str]:
    shares = ", ".join(f"{cell(s)} by {TITLES[m]}" for m, s in summary["nearer"].items())
    return [
        f"Purified, attacked pictures are nearer to the clean one than before: {shares}.",
        "Of the perturbation, as long as it was 1, is left after purification on the same draw: "
        f"{_mean(summary['left'])}.",
    ]


def _figure(found: Purification, metrics: list[str]) -> bytes:
    names = list(found.distances)
    figure = Figure(
        figsize=(3.3 * len(metrics) + 1.6, 1.3 + 0.4 * len(names)), layout="constrained"
    )
    panels = np.atleast_1d(np.asarray(figure.subplots(1, len(metrics)), dtype=object))
    for panel, metric in zip(panels, metrics, strict=True):
        for place, name in enumerate(names):
            values = found.distances[name][metric].mean(1)
            spread = place + np.linspace(-0.16, 0.16, len(values))
            color = BLUE if name.startswith("clean") else TEAL
            panel.plot(values, spread, "o", color=color, markersize=3.2, alpha=0.5, clip_on=False)
            panel.plot(values.mean(), place, "|", color=RUST, markersize=17, markeredgewidth=2)
        panel.set_yticks(range(len(names)), names if panel is panels[0] else [])
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlim(left=min(0, *panel.get_xlim()))
        panel.locator_params(axis="x", nbins=5)
        panel.set_xlabel(TITLES[metric], fontsize=9, color=INK)
        panel.grid(axis="x", color="#e2e2e0", linewidth=0.7)
        tidy(panel)
    return png(figure)


def _pictures(found: Purification) -> bytes:
    names, count = list(found.pictures), len(next(iter(found.pictures.values())))
    figure = Figure(figsize=(1.6 + 1.05 * count, 1.1 * len(names)), layout="constrained")
    panels = np.asarray(figure.subplots(len(names), count, squeeze=False), dtype=object)
    for row, name in zip(panels, names, strict=True):
        for panel, picture in zip(row, found.pictures[name], strict=True):
            shade: Any = {"cmap": "gray", "vmin": 0, "vmax": 1} if len(picture) == 1 else {}
            panel.imshow(picture.transpose(1, 2, 0).clip(0, 1), **shade)
            panel.set_xticks([])
            panel.set_yticks([])
            tidy(panel)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, color=INK)
    return png(figure)


def _mean(mean: Mapping[str, float] | None) -> str:
    if mean is None:
        return "-"
    return f"{mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"
