"""The figures of `unfool analyze trajectories` and `unfool analyze landscape`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unfool.analysis.landscape import Landscape
from unfool.analysis.trajectories import DW, EOT, WHITE, Trajectories
from unfool.report.document import Drawing
from unfool.report.figures.style import BLUE, DARK, INK, LIGHT, RUST, TEAL, blank, draw, legend

COLORS = {DW: RUST, WHITE: TEAL, EOT: BLUE}
KINDS = {"known": "the noise that DW-box knows", "fresh": "fresh noise, mean over draws"}


def paths(
    result: Trajectories, points: np.ndarray, slices: Sequence[tuple[str, int, slice]]
) -> Drawing:
    """Draw the paths of all runs, with the loss as height.

    Args:
        result: What `analysis.trajectories.trajectories` returned.
        points: The iterates in two dimensions (N, 2).
        slices: For each run, its setting, its number, and the slice of its points.
    """
    figure = blank(10.4, 5.2)
    for column, (kind, title) in enumerate(KINDS.items(), 1):
        axes: Any = figure.add_subplot(1, 2, column, projection="3d")
        for name, number, rows in slices:
            height, flat_path = result.runs[name].heights[kind][0, number], points[rows]
            axes.plot(
                flat_path[:, 0], flat_path[:, 1], height, color=COLORS[name], linewidth=1.3,
                marker="o", markersize=2.2, alpha=0.85, label=name if number == 0 else None,
            )  # fmt: skip
            axes.scatter(*flat_path[-1], height[-1], color=COLORS[name], s=26, depthshade=False)
        _ground(axes, f"loss, {title}")
    legend(figure, figure.axes[0], len(result.runs))
    return draw(figure)


def surfaces(landscapes: Mapping[str, Landscape]) -> Drawing:
    """Draw each model's loss over the plane, as a surface and from above, all on one scale."""
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    low = min(
        float(getattr(landscape, k).min()) for landscape in landscapes.values() for k in KINDS
    )
    high = max(
        float(getattr(landscape, k).max()) for landscape in landscapes.values() for k in KINDS
    )
    figure = blank(14.5, 3.9 * len(landscapes))
    scale: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": high}
    for row, (name, landscape) in enumerate(landscapes.items()):
        a, b = np.meshgrid(landscape.along, landscape.along)
        for column, (kind, title) in enumerate(KINDS.items()):
            loss = getattr(landscape, kind)
            axes: Any = figure.add_subplot(
                len(landscapes), 4, 4 * row + 2 * column + 1, projection="3d"
            )
            axes.plot_surface(a, b, loss, rcount=40, ccount=40, **scale)
            axes.set_zlim(low, high)
            _ground(axes, f"{name}\n{title}", "DW-box", "residual of EOT")
            plane: Any = figure.add_subplot(len(landscapes), 4, 4 * row + 2 * column + 2)
            filled = plane.contourf(a, b, loss, levels=np.linspace(low, high, 18), **scale)
            for setting, style in ((DW, "-"), (EOT, "--")):
                path = landscape.paths[setting]
                plane.plot(
                    path[:, 0], path[:, 1], style, color=LIGHT, linewidth=1.4, marker="o",
                    markersize=2.4,
                )  # fmt: skip
                fits_right = (
                    path[-1, 0] < 0.65 * landscape.along[-1]
                )  # DW-box ends at 1, the axis at 1.6
                plane.annotate(
                    setting, path[-1], color=LIGHT, fontsize=8, xytext=(7 if fits_right else -7, 4),
                    textcoords="offset points", ha="left" if fits_right else "right",
                    path_effects=[withStroke(linewidth=2, foreground=DARK)],
                )  # fmt: skip
            plane.set_facecolor("0.55")  # iterates may leave the measured grid
            ends = np.concatenate(list(landscape.paths.values()))
            for limits, end in ((plane.set_xlim, ends[:, 0]), (plane.set_ylim, ends[:, 1])):
                limits(min(0, end.min() - 0.02), max(landscape.along[-1], end.max()))
            plane.set_xlabel("DW-box", fontsize=8.5, color=INK)
            plane.set_ylabel("residual of EOT", fontsize=8.5, color=INK)
            plane.tick_params(labelsize=8, colors=INK)
            bar = figure.colorbar(filled, ax=plane, shrink=0.8, ticks=MaxNLocator(6))
            bar.ax.tick_params(labelsize=8, colors=INK)
    return draw(figure)


def _ground(axes: Any, title: str, across: str = "", along: str = "") -> None:
    axes.set_title(title, fontsize=9.5, color=INK)
    axes.set_xlabel(across, fontsize=8.5, color=INK)
    axes.set_ylabel(along, fontsize=8.5, color=INK)
    axes.tick_params(labelsize=7.5, colors=INK)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((0.97, 0.97, 0.96, 1))


def principal_components(points: np.ndarray) -> np.ndarray:
    """Project points onto the plane of their first two principal components."""
    from sklearn.decomposition import PCA

    return PCA(2).fit_transform(points)


def t_sne(points: np.ndarray) -> np.ndarray:
    """Embed points in a plane in which near points stay near (t-SNE)."""
    from sklearn.manifold import TSNE

    near = max(2.0, min(30.0, (len(points) - 1) / 3))
    return TSNE(2, perplexity=near, init="pca", random_state=0).fit_transform(points)
