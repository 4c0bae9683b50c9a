"""The report of `unfool analyze gradients`: a table, and how alike the gradients are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from unfool.analysis.gradients import Gradients
from unfool.report.document import Part, write_sheet
from unfool.report.style import BLUE, INK, RUST, png, tidy
from unfool.report.tables import markdown
from unfool.runtime.files import write_bytes

HEADS = (
    "gradient", "cosine with the exact one", "same sign", "relative error",
    "error against finite differences", "time, in forward passes", "kept by graphs, MiB",
)  # fmt: skip
CAPTION = (
    "Left: the cosine of each two gradients, mean over the images. Right: the cosine with the exact "
    "gradient, image by image."
)


def write_gradients(folder: Path, found: Gradients, about: Mapping[str, Any]) -> str:
    """Write `gradients.{json,md,html,png,npz}` into `folder`.

    Args:
        folder: Where to.
        found: What `analysis.gradients.compare` returned.
        about: `command`, `spec`, `indices`, `draws`, `loss`: what is written beside it.

    Returns:
        The table in Markdown, and what gradients are not there.
    """
    summary, drawn = found.summary(), _figure(found)
    rows = [_row(row) for row in summary["ways"]]
    said, table = _said(summary, about), markdown(HEADS, rows)
    missing = [f"No {name} gradient: {why}." for name, why in summary["missing"].items()]
    parts = ["# Gradients of a defense", said, table, "![cosines](gradients.png)", CAPTION]
    parts += missing
    page = [Part(said), Part(heads=HEADS, rows=rows), Part(CAPTION, drawn)]
    page += [Part(line) for line in missing]
    page.append(Part(about["command"], code=True))
    arrays = {
        "ways": np.array([way.name for way in found.variants]),
        "gradients": found.gradients,
        "directions": found.directions,
        "slopes": found.slopes,
    }
    write_bytes(folder / "gradients.png", drawn)
    title = "Gradients of a defense"
    write_sheet(folder, "gradients", title, parts, page, about, summary, arrays)
    return "\n\n".join([table, *missing])


def _said(summary: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    kind = "float64" if summary["precise"] else "float32, as the model refuses float64"
    return (
        f"{summary['images']} images, {about['draws']} draws of the defense's noise each, the same for "
        f"every gradient, of the loss `{about['loss']}`. Finite differences along "
        f"{summary['directions']} random directions, in {kind}. Means over images with 95 % intervals. "
        f"A forward pass takes {1000 * summary['forward_seconds']:.1f} ms an image."
    )


def _row(row: Mapping[str, Any]) -> list[str]:
    means = [_mean(row[key]) for key in ("cosine", "sign", "error", "slope_error")]
    return [row["way"], *means, f"{row['forwards']:.2f}", f"{row['kept'] / 2**20:.2f}"]


def _mean(share: Mapping[str, float]) -> str:
    def said(value: float) -> str:
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.0e}"

    if max(abs(share[key] - share["mean"]) for key in ("low", "high")) < 5e-4:
        return said(share["mean"])
    return f"{said(share['mean'])} [{said(share['low'])}, {said(share['high'])}]"


def _figure(found: Gradients) -> bytes:
    names, cosines = [way.name for way in found.variants], found.cosines()
    figure = Figure(figsize=(9.6, 1.5 + 0.42 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(cosines.mean(2), cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for i, row in enumerate(cosines.mean(2)):
        for j, value in enumerate(row):
            left.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=INK)
    left.set_xticks(range(len(names)), names, rotation=35, ha="right")
    left.set_yticks(range(len(names)), names)
    for place, values in enumerate(cosines[:, 0]):
        spread = place + np.linspace(-0.16, 0.16, len(values))
        right.plot(values, spread, "o", color=BLUE, markersize=3.5, alpha=0.55, clip_on=False)
        right.plot(values.mean(), place, "|", color=RUST, markersize=16, markeredgewidth=2)
    right.set_yticks(range(len(names)), [])
    right.set_ylim(len(names) - 0.5, -0.5)
    right.set_xlim(min(0.0, float(cosines[:, 0].min()) - 0.03), 1)
    right.set_xlabel("cosine with the exact gradient", fontsize=9, color=INK)
    right.grid(axis="x", color="#e2e2e0", linewidth=0.7)
    for axes in (left, right):
        tidy(axes)
    return png(figure)
