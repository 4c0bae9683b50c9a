"""The report as one page of HTML that needs nothing beside it: no script, no other file."""

import base64
import re
import struct
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from unfool.report import rows, sentences
from unfool.report.plates import ReportFigure
from unfool.report.text import reproduce, reproduction, spec_yaml, versions

SCALE = 1.7  # pixels of a figure's file to a pixel of the page


def page(summary: Mapping[str, Any], plates: Mapping[str, ReportFigure]) -> str:
    """The whole report in HTML.

    Args:
        summary: What the verdict says.
        plates: The figures.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("unfool.report").joinpath("page.html").read_text("utf-8")
    checked, unchecked = sentences.checks(summary)
    return environment.from_string(source).render(
        summary=summary,
        sentences=sentences,
        basis=_together(sentences.basis(summary)),
        lead=_together(" ".join(sentences.lead(summary))),
        cell=rows.cell,
        columns=rows.columns(summary),
        rows=rows.rows(summary),
        doubts=rows.doubts(summary),
        checked=checked,
        unchecked=unchecked,
        classes=rows.weakest(summary),
        costs=rows.costs(summary),
        quality=rows.quality(summary),
        ladder=rows.ladder(summary),
        knowing=rows.knowing(summary),
        resubmission=rows.resubmission(summary),
        figures={name: _picture(plate) for name, plate in plates.items()},
        spec=spec_yaml(summary),
        reproduction=reproduction(summary, reproduce(summary)).replace("`", ""),
        versions=versions(summary),
    )


def _together(text: str) -> str:
    """Text in which no line ends between a number, its sign and its interval's two ends."""
    pattern = r"\d %( \[[\d.]+, [\d.]+\])?"
    return re.sub(pattern, lambda found: found[0].replace(" ", "\u00a0"), text)


def _picture(plate: ReportFigure) -> dict[str, Any]:
    """A figure as the page needs it: embedded, with its size in CSS pixels."""
    width, height = struct.unpack(">II", plate.png[16:24])
    return {
        "title": plate.title,
        "caption": plate.caption,
        "data": "data:image/png;base64," + base64.b64encode(plate.png).decode(),
        "width": round(width / SCALE),
        "height": round(height / SCALE),
    }
