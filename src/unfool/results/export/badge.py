"""A badge with the robust accuracy of a run and its interval: SVG, and JSON for shields.io."""

from html import escape
from typing import Any, NamedTuple

from unfool.results.export.conditions import red_doubts, summary_of_finished, threat
from unfool.results.run_folder import Run
from unfool.statistics import percent_interval

BLUE, GRAY, DARK = (
    "#1f6feb",
    "#6e7681",
    "#24292f",
)  # white text on each has a contrast of 4.5 or more
SPACE = 8  # pixels on each side of a text


class Badge(NamedTuple):
    """The text of a badge.

    Attributes:
        label: The text on the left: what was measured.
        message: The text on the right: the accuracy with its interval.
        doubted: Whether the run has a red doubt. The badge then says so and is gray.
    """

    label: str
    message: str
    doubted: bool

    def to_shields(self) -> dict[str, Any]:
        """The badge as shields.io reads it from an endpoint."""
        color = GRAY if self.doubted else BLUE
        return {"schemaVersion": 1, "label": self.label, "message": self.message, "color": color}

    def to_svg(self) -> str:
        """The badge as an SVG image, 20 pixels high."""
        left, right = (width(text) for text in (self.label, self.message))
        color = GRAY if self.doubted else BLUE
        title = escape(f"{self.label}: {self.message}", quote=True)
        texts = "".join(
            f'<text x="{x}" y="14" textLength="{wide - 2 * SPACE}">{escape(text)}</text>'
            for x, wide, text in ((SPACE, left, self.label), (left + SPACE, right, self.message))
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
            f'aria-label="{title}"><title>{title}</title>'
            f'<rect width="{left + right}" height="20" rx="3" fill="{DARK}"/>'
            f'<path d="M{left} 0h{right - 3}q3 0 3 3v14q0 3-3 3h-{right - 3}z" fill="{color}"/>'
            f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{texts}</g>'
            "</svg>\n"
        )


def width(text: str) -> int:
    """The width of a text on a badge in pixels, with the space on both sides."""
    return round(6.6 * len(text)) + 2 * SPACE


def badge(run: Run) -> Badge:
    """Make the badge of a finished run: robust accuracy per draw.

    Raises:
        RuntimeError: The run is not finished, or is not an evaluation.
        ValueError: The run has no attacks.
    """
    summary = summary_of_finished(run)
    if not summary["attacks"]:
        raise ValueError(
            f"{run.folder} tried no attack, so there is no robust accuracy for a badge: name a run "
            "with attacks"
        )
    share = summary["robust"]["per_draw"]
    message = percent_interval(share["accuracy"], share["low"], share["high"])
    doubted = bool(red_doubts(summary))
    suffix = ", doubted" if doubted else ""
    return Badge(f"robust accuracy, {threat(summary)}", message + suffix, doubted)
