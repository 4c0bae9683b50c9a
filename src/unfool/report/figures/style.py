"""What the figures share: colors, intervals, axes. Matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from unfool.report.formatting import Share

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, BLUE, TEAL, RUST, GRAY = "#1c1c1c", "#1f4e79", "#2f7f79", "#b5482a", "#7d7d7d"
WIDTH = 7.4


def blank(width: float, height: float) -> Figure:
    """An empty figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def interval(
    axes: Axes, share: Share, place: float, style: Mapping[str, Any], label: str | None
) -> None:
    """A point with its 95 % interval, at a height."""
    low, middle, high = (100 * share[key] for key in ("low", "accuracy", "high"))
    axes.plot([low, high], [place, place], color=style["color"], linewidth=1.3, zorder=2)
    axes.plot([middle], [place], linestyle="", label=label, zorder=3, clip_on=False, **style)


def percent_axis(axes: Axes, names: list[str], title: str) -> None:
    """An axis from 0 to 100 %, with a row for each name."""
    axes.set_yticks(range(len(names)), names, fontsize=9, color=INK, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 20))
    ground(axes, title, lines="x")


def ground(axes: Axes, x: str = "", y: str = "", lines: Literal["both", "x", "y"] = "both") -> None:
    """Name the axes, and lay lines behind what is drawn."""
    if x:
        axes.set_xlabel(x, fontsize=9, color=INK)
    if y:
        axes.set_ylabel(y, fontsize=9, color=INK)
    axes.grid(axis=lines, color="#e2e2e0", linewidth=0.7)
    tidy(axes)


def tidy(axes: Axes) -> None:
    """No frame, no ticks, and the grid behind."""
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)


def legend(figure: Figure, axes: Axes, count: int) -> None:
    """A legend above the figure, in `count` columns."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=count, frameon=False, fontsize=9
    )


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure.savefig(buffer, format="png", dpi=170, facecolor="white")
    lacking = [each for each in told if "missing from font" in str(each.message)]
    for other in told:
        if other not in lacking:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    if lacking:
        _say_boxes()
    return buffer.getvalue()


@cache
def _say_boxes() -> None:
    """Say once that the font lacks signs."""
    print(
        "unfool: the figures' font lacks some signs of the labels or class names, and shows boxes in "
        "their place; text and tables have them",
        file=sys.stderr,
    )


def show(axes: Axes, image: np.ndarray) -> None:
    """An image (C, H, W) in [0, 1], one of few pixels without blur."""
    image = image.clip(0, 1)
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
    smooth = "antialiased" if min(pixels.shape[:2]) > 100 else "nearest"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation=smooth)
    axes.set_xticks([])
    axes.set_yticks([])


def short(name: str) -> str:
    """A name, cut where it is long."""
    return name if len(name) <= 24 else f"{name[:23]}…"
