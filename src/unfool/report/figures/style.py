"""What the figures share: colors, intervals, axes. Matplotlib is imported when one is drawn."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from unfool.report.document import Drawing
from unfool.report.formatting import Share

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, BLUE, TEAL, RUST, GRAY = "#1c1c1c", "#1f4e79", "#26726c", "#b5482a", "#6b6b6b"
OCHRE, VIOLET = "#8a6d1f", "#6b4a8a"
GRID, STRIPE, EDGE = "#e2e2e0", "#f4f4f2", "#c9c9c6"
DARK, LIGHT = "#010101", "#fefefe"  # over a map of colors, which is the same on any page
WIDTH = 7.4
THEME = {  # the variable of a page that stands for a color
    INK: "ink",
    "#000000": "ink",
    "#ffffff": "paper",
    BLUE: "blue",
    TEAL: "teal",
    RUST: "rust",
    GRAY: "gray",
    OCHRE: "ochre",
    VIOLET: "violet",
    GRID: "grid",
    "#b0b0b0": "edge",
    STRIPE: "stripe",
    "#f7f7f5": "stripe",
    EDGE: "edge",
    "#1b6e35": "green",
    "#9c1c1c": "red",
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


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
    axes.set_xlim(-1.5, 101.5)  # room for marks at both ends
    axes.set_xticks(range(0, 101, 20))
    ground(axes, title, lines="x")


def ground(axes: Axes, x: str = "", y: str = "", lines: Literal["both", "x", "y"] = "both") -> None:
    """Name the axes, and lay lines behind what is drawn."""
    if x:
        axes.set_xlabel(x, fontsize=9, color=INK)
    if y:
        axes.set_ylabel(y, fontsize=9, color=INK)
    axes.grid(axis=lines, color=GRID, linewidth=0.7)
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


def draw(figure: Figure) -> Drawing:
    """The figure as a PNG file, and as SVG in the colors of a page."""
    from matplotlib import rc_context

    png, svg = draw_png(figure).png, io.StringIO()
    # Text stays text. Names of shapes, which a page may have once each, go by what is drawn.
    salt = hashlib.sha256(png).hexdigest()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), _told_of_lacking_signs():
        figure.savefig(svg, format="svg", facecolor="none", metadata=NO_METADATA)
    return Drawing(png, _themed(svg.getvalue()))


def draw_png(figure: Figure) -> Drawing:
    """The figure as a PNG file alone, such as one of photographs."""
    png = io.BytesIO()
    with _told_of_lacking_signs():
        figure.savefig(png, format="png", dpi=170, facecolor="white")
    return Drawing(png.getvalue(), "")


@contextmanager
def _told_of_lacking_signs() -> Iterator[None]:
    """Say in one sentence what matplotlib warns of for each sign that the font lacks."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    lacking = [each for each in told if "missing from font" in str(each.message)]
    for other in told:
        if other not in lacking:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    if lacking:
        _say_boxes()


def _themed(svg: str) -> str:
    """An SVG file as an element of a page, whose variables give its colors."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for color, variable in THEME.items():
        svg = svg.replace(color, f"var(--{variable}, {color})")
    return svg.strip()


@cache
def _say_boxes() -> None:
    """Say once that the font lacks signs."""
    print(
        "unfool: the font of the figures lacks some characters of the labels or class names and "
        "shows boxes instead; text and tables are not affected",
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
