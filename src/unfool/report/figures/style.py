"""Shared elements of figures: colors, intervals, and axes. Matplotlib is imported on use."""

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
DARK, LIGHT = "#010101", "#fefefe"  # for marks on a color map, which looks the same on any page
WIDTH = 7.4
THEME = {  # color to the CSS variable that replaces it on a page
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
    """Make an empty figure of the given size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def interval(
    axes: Axes, share: Share, y: float, style: Mapping[str, Any], label: str | None
) -> None:
    """Draw a point with its 95 % interval at height `y`."""
    low, middle, high = (100 * share[key] for key in ("low", "accuracy", "high"))
    axes.plot([low, high], [y, y], color=style["color"], linewidth=1.3, zorder=2)
    axes.plot([middle], [y], linestyle="", label=label, zorder=3, clip_on=False, **style)


def percent_axis(axes: Axes, names: list[str], title: str) -> None:
    """Set up an axis from 0 to 100 %, with a row for each name."""
    axes.set_yticks(range(len(names)), names, fontsize=9, color=INK, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-1.5, 101.5)  # room for marks at both ends
    axes.set_xticks(range(0, 101, 20))
    ground(axes, title, lines="x")


def ground(axes: Axes, x: str = "", y: str = "", lines: Literal["both", "x", "y"] = "both") -> None:
    """Label the axes, and draw grid lines in the background."""
    if x:
        axes.set_xlabel(x, fontsize=9, color=INK)
    if y:
        axes.set_ylabel(y, fontsize=9, color=INK)
    axes.grid(axis=lines, color=GRID, linewidth=0.7)
    tidy(axes)


def tidy(axes: Axes) -> None:
    """Remove frame and ticks, and put the grid in the background."""
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)


def legend(figure: Figure, axes: Axes, count: int) -> None:
    """Add a legend above the figure, in `count` columns."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=count, frameon=False, fontsize=9
    )


def draw(figure: Figure) -> Drawing:
    """Render a figure as a PNG file, and as SVG in the colors of a page."""
    from matplotlib import rc_context

    png, svg = draw_png(figure).png, io.StringIO()
    # Text stays text. Ids must be unique on a page, so they depend on the figure's content.
    salt = hashlib.sha256(png).hexdigest()
    with (
        rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}),
        _summarize_missing_characters(),
    ):
        figure.savefig(svg, format="svg", facecolor="none", metadata=NO_METADATA)
    return Drawing(png, _themed(svg.getvalue()))


def draw_png(figure: Figure) -> Drawing:
    """Render a figure, such as one of photographs, only as a PNG file."""
    png = io.BytesIO()
    with _summarize_missing_characters():
        figure.savefig(png, format="png", dpi=170, facecolor="white")
    return Drawing(png.getvalue(), "")


@contextmanager
def _summarize_missing_characters() -> Iterator[None]:
    """Replace matplotlib's warnings about characters missing from the font by one message."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    missing = [warning for warning in caught if "missing from font" in str(warning.message)]
    for other in caught:
        if other not in missing:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    if missing:
        _report_missing_characters()


def _themed(svg: str) -> str:
    """Convert an SVG file to an element of a page, whose CSS variables set its colors."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for color, variable in THEME.items():
        svg = svg.replace(color, f"var(--{variable}, {color})")
    return svg.strip()


@cache
def _report_missing_characters() -> None:
    """Print once that the font lacks characters."""
    print(
        "unfool: the font of the figures lacks some characters of the labels or class names and "
        "shows boxes instead; text and tables are not affected",
        file=sys.stderr,
    )


def show(axes: Axes, image: np.ndarray) -> None:
    """Show an image (C, H, W), clipped to [0, 1]; one of few pixels without blur."""
    image = image.clip(0, 1)
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
    smooth = "antialiased" if min(pixels.shape[:2]) > 100 else "nearest"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation=smooth)
    axes.set_xticks([])
    axes.set_yticks([])


def short(name: str) -> str:
    """Shorten a name if it is long."""
    return name if len(name) <= 24 else f"{name[:23]}…"
