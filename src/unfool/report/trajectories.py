"""The reports of `unfool analyze trajectories` and `unfool analyze landscape`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from unfool.analysis.landscape import Landscape
from unfool.analysis.trajectories import DW, EOT, WHITE, Trajectories, flat
from unfool.report.document import Part, write_sheet
from unfool.report.rows import cell
from unfool.report.style import BLUE, INK, RUST, TEAL, png
from unfool.report.tables import markdown
from unfool.runtime.files import write_bytes

COLORS = {DW: RUST, WHITE: TEAL, EOT: BLUE}
KINDS = {"known": "the noise that DW-box knows", "fresh": "fresh noise, mean over draws"}
HEADS = (
    "setting",
    "runs",
    "loss, known noise",
    "right, known noise",
    "loss, fresh noise",
    "right, fresh noise",
)
CAPTION = (
    "All iterates of all runs from one picture; height is the loss, on the left on the noise that "
    "DW-box knows, on the right on fresh noise. The flat axes are the first two {what}."
)


def write_trajectories(folder: Path, found: Trajectories, about: Mapping[str, Any]) -> str:
    """Write `trajectories.{json,md,html,npz}` and figures of the first picture into `folder`.

    Args:
        folder: Where to.
        found: What `analysis.trajectories.trajectories` returned.
        about: `command`, and whatever is written beside the numbers.

    Returns:
        The tables, in Markdown.
    """
    summary = found.summary()
    rows = [
        [
            row["setting"], str(row["runs"]),
            *(text for kind in KINDS for text in (_mean(row["loss"][kind]), cell(row["right"][kind]))),
        ]
        for row in summary["settings"]
    ]  # fmt: skip
    pairs = [[_pair(row["between"]), _mean(row["cosine"])] for row in summary["cosines"]]
    heads = ("ends of", "cosine")
    said = (
        f"{summary['images']} pictures. Losses and accuracies at the ends of the runs, on the draw of "
        f"noise that DW-box knows and on {summary['draws']} fresh draws; cosines of the perturbations "
        "there. Means over pictures with 95 % intervals."
    )
    points, where = flat(found.runs, 0)
    figures = {
        "trajectories": (_pca(points), "principal components"),
        "trajectories-tsne": (_tsne(points), "axes of t-SNE, where lengths mean little"),
    }
    title = "Paths of attacks"
    tables = [markdown(HEADS, rows), markdown(heads, pairs)]
    parts, page = [f"# {title}", said, *tables], [Part(said), Part(heads=HEADS, rows=rows)]
    page.append(Part(heads=heads, rows=pairs))
    for name, (flat_points, what) in figures.items():
        drawn, caption = _paths(found, flat_points, where), CAPTION.format(what=what)
        write_bytes(folder / f"{name}.png", drawn)
        parts += [f"![paths]({name}.png)", caption]
        page.append(Part(caption, drawn))
    page.append(Part(about["command"], code=True))
    arrays = {
        f"{name}/{key}": value
        for name, runs in found.runs.items()
        for key, value in (
            ("ends", runs.ends),
            ("paths", runs.paths),
            *((f"height-{kind}", height) for kind, height in runs.heights.items()),
            *((f"loss-{kind}", loss) for kind, loss in runs.losses.items()),
            *((f"right-{kind}", rate) for kind, rate in runs.right.items()),
        )
    }
    for figure, (drawn, _) in figures.items():
        arrays |= {f"{figure}/{name}/{number}": drawn[rows] for name, number, rows in where}
    write_sheet(folder, "trajectories", title, parts, page, about, summary, arrays)
    return "\n\n".join(tables)


def write_landscapes(
    folder: Path, found: Mapping[str, Landscape], about: Mapping[str, Any]
) -> None:
    """Write `landscape.{json,md,html,png,npz}` into `folder`.

    Args:
        folder: Where to.
        found: What `analysis.landscape.landscape` returned, by what the model is called; all are
            drawn on one scale.
        about: `command`, and whatever is written beside the numbers.
    """
    drawn, title = _surfaces(found), "The loss around a picture"
    said = (
        "The loss over the plane of two attacks from one picture: across, the perturbation that DW-box "
        "ends with (at 1); along, what is left of that of white box with EOT (at 1). Lines: the iterates "
        "of both, as far as they lie in the plane. All on one scale."
    )
    summary = {
        name: {
            "loss at the picture": {k: float(getattr(seen, k)[0, 0]) for k in KINDS},
            "highest loss": {k: float(getattr(seen, k).max()) for k in KINDS},
            "outside the plane": seen.outside,
        }
        for name, seen in found.items()
    }
    arrays = {
        f"{name}/{key}": np.asarray(value)
        for name, seen in found.items()
        for key, value in (
            ("along", seen.along), ("known", seen.known), ("fresh", seen.fresh),
            ("directions", seen.directions), *seen.paths.items(),
        )
    }  # fmt: skip
    write_bytes(folder / "landscape.png", drawn)
    page = [Part(said, drawn), Part(about["command"], code=True)]
    parts = [f"# {title}", "![landscape](landscape.png)", said]
    write_sheet(folder, "landscape", title, parts, page, about, {"models": summary}, arrays)


def _paths(
    found: Trajectories, points: np.ndarray, where: Sequence[tuple[str, int, slice]]
) -> bytes:
    figure = Figure(figsize=(10.4, 5.2), layout="constrained")
    for place, (kind, title) in enumerate(KINDS.items(), 1):
        axes: Any = figure.add_subplot(1, 2, place, projection="3d")
        for name, number, rows in where:
            height, flat_path = found.runs[name].heights[kind][0, number], points[rows]
            axes.plot(
                flat_path[:, 0], flat_path[:, 1], height, color=COLORS[name], linewidth=1.3,
                marker="o", markersize=2.2, alpha=0.85, label=name if number == 0 else None,
            )  # fmt: skip
            axes.scatter(*flat_path[-1], height[-1], color=COLORS[name], s=26, depthshade=False)
        _ground(axes, f"loss, {title}")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9
    )
    return png(figure)


def _surfaces(found: Mapping[str, Landscape]) -> bytes:
    low = min(float(getattr(seen, k).min()) for seen in found.values() for k in KINDS)
    high = max(float(getattr(seen, k).max()) for seen in found.values() for k in KINDS)
    figure = Figure(figsize=(14.5, 3.9 * len(found)), layout="constrained")
    scale: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": high}
    for row, (name, seen) in enumerate(found.items()):
        a, b = np.meshgrid(seen.along, seen.along)
        for column, (kind, title) in enumerate(KINDS.items()):
            loss = getattr(seen, kind)
            axes: Any = figure.add_subplot(len(found), 4, 4 * row + 2 * column + 1, projection="3d")
            axes.plot_surface(a, b, loss, rcount=40, ccount=40, **scale)
            axes.set_zlim(low, high)
            _ground(axes, f"{name}: {title}", "DW-box", "residual of EOT")
            plane: Any = figure.add_subplot(len(found), 4, 4 * row + 2 * column + 2)
            filled = plane.contourf(a, b, loss, levels=np.linspace(low, high, 18), **scale)
            for setting, style in ((DW, "-"), (EOT, "--")):
                path = seen.paths[setting]
                plane.plot(
                    path[:, 0], path[:, 1], style, color="white", linewidth=1.4, marker="o",
                    markersize=2.4,
                )  # fmt: skip
                room = path[-1, 0] < 0.65 * seen.along[-1]  # DW-box ends at 1 of 1.6
                plane.annotate(
                    setting, path[-1], color="white", fontsize=8, xytext=(7 if room else -7, 4),
                    textcoords="offset points", ha="left" if room else "right",
                    path_effects=[withStroke(linewidth=2, foreground=INK)],
                )  # fmt: skip
            plane.set_facecolor("0.55")  # where iterates go that no loss was measured at
            ends = np.concatenate(list(seen.paths.values()))
            for limits, end in ((plane.set_xlim, ends[:, 0]), (plane.set_ylim, ends[:, 1])):
                limits(min(0, end.min() - 0.02), max(seen.along[-1], end.max()))
            plane.set_xlabel("DW-box", fontsize=8.5, color=INK)
            plane.set_ylabel("residual of EOT", fontsize=8.5, color=INK)
            plane.tick_params(labelsize=8, colors=INK)
            bar = figure.colorbar(filled, ax=plane, shrink=0.8, ticks=MaxNLocator(6))
            bar.ax.tick_params(labelsize=8, colors=INK)
    return png(figure)


def _ground(axes: Any, title: str, across: str = "", along: str = "") -> None:
    axes.set_title(title, fontsize=9.5, color=INK)
    axes.set_xlabel(across, fontsize=8.5, color=INK)
    axes.set_ylabel(along, fontsize=8.5, color=INK)
    axes.tick_params(labelsize=7.5, colors=INK)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((0.97, 0.97, 0.96, 1))


def _pca(points: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    return PCA(2).fit_transform(points)


def _tsne(points: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    near = max(2.0, min(30.0, (len(points) - 1) / 3))
    return TSNE(2, perplexity=near, init="pca", random_state=0).fit_transform(points)


def _pair(names: Sequence[str]) -> str:
    return f"{names[0]}, run by run" if names[0] == names[1] else " and ".join(names)


def _mean(mean: Mapping[str, float]) -> str:
    return f"{mean['mean']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]"
