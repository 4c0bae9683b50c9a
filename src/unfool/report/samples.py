"""The report of `unfool analyze samples`: a distance for each model, and what it generates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from unfool.analysis.samples import REAL, Samples
from unfool.report.document import Part, write_sheet
from unfool.report.style import INK, png
from unfool.report.tables import markdown
from unfool.runtime.files import write_bytes

HEADS = ("pictures", "Fréchet distance over the classifier's features")
SHOWN = 32


def write_samples(folder: Path, found: Samples, about: Mapping[str, Any]) -> str:
    """Write `samples.{json,md,html,png,npz}` into `folder`.

    Args:
        folder: Where to.
        found: What `analysis.samples.samples` returned.
        about: `command`, and whatever is written beside the numbers.

    Returns:
        The table, in Markdown.
    """
    summary, title = found.summary(), "Generated pictures beside real ones"
    rows = [[name, _mean(mean)] for name, mean in summary["frechet"].items()]
    said = (
        f"The distance of {summary['size']} pictures to as many real ones; mean over "
        f"{summary['sets']} sets with a 95 % interval. That of {REAL} is what is left where nothing "
        "differs. Not FID: the features are those of this classifier, and numbers of other "
        "classifiers or sizes do not compare."
    )
    table, caption = markdown(HEADS, rows), "The first generated pictures, from the same noise."
    drawn = _figure(found)
    write_bytes(folder / "samples.png", drawn)
    parts = [f"# {title}", said, table, "![samples](samples.png)", caption]
    page = [Part(said), Part(heads=HEADS, rows=rows), Part(caption, drawn)]
    page.append(Part(about["command"], code=True))
    arrays = {f"{name}/distances": np.array(values) for name, values in found.distances.items()}
    arrays |= {f"{name}/pictures": kept.cpu().numpy() for name, kept in found.pictures.items()}
    write_sheet(folder, "samples", title, parts, page, about, summary, arrays)
    return table


def _figure(found: Samples) -> bytes:
    figure = Figure(figsize=(9.6, 1.7 * len(found.pictures)), layout="constrained")
    panels = np.atleast_1d(np.asarray(figure.subplots(len(found.pictures)), dtype=object))
    for panel, (name, kept) in zip(panels, found.pictures.items(), strict=True):
        few = kept[:SHOWN].cpu().numpy().transpose(0, 2, 3, 1)
        height, width, channels = few.shape[1:]
        gap = max(1, height // 8)
        padded = np.pad(few, ((0, -len(few) % 16), (0, gap), (0, gap), (0, 0)), constant_values=1)
        lines = padded.reshape(-1, 16, height + gap, width + gap, channels).transpose(0, 2, 1, 3, 4)
        whole = lines.reshape(-1, 16 * (width + gap), channels)
        panel.imshow(whole.squeeze(), cmap="gray", vmin=0, vmax=1)
        panel.set_title(name, fontsize=9.5, color=INK, loc="left")
        panel.axis("off")
    return png(figure)


def _mean(mean: Mapping[str, float]) -> str:
    return f"{mean['mean']:.3g} [{mean['low']:.3g}, {mean['high']:.3g}]"
