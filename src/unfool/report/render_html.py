"""Render a document as one self-contained HTML page, or as a fragment of HTML for a notebook.

`page.html` is the template of a page, and `blocks.html` that of each kind of block.
"""

import base64
import hashlib
import re
import struct
from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from unfool.report.document import DOUBTS_URL, NOT_CHECKED, Document, Drawing

SCALE = 1.7  # pixels of a figure's file per CSS pixel of the page


def to_html(document: Document, files: Sequence[str] = ()) -> str:
    """Render a document as a page that loads no other file and runs only its own script.

    Args:
        document: The report.
        files: The names of the files beside the page, for links.
    """
    script = resources.files("unfool.report").joinpath("page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template("page.html")
    return page.render(document=document, files=files, script=Markup(script), digest=digest)


def to_fragment(document: Document) -> str:
    """Render a document as a fragment of HTML for a notebook, which has its own style."""
    show = _environment().get_template("blocks.html").make_module().show  # pyright: ignore
    title = Markup("<p><b>{}</b></p>\n").format(_text(document.title))
    return str(title + show(document.blocks))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("unfool.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"not_checked": NOT_CHECKED, "doubts_url": DOUBTS_URL}
    environment.filters |= {
        "kind": lambda block: type(block).__name__,
        "text": _text,
        "interval": _interval,
        "embedded": _embedded,
        "drawn": _drawn,
    }
    return environment


def _text(text: str) -> Markup:
    """Render sentences, with words between backticks as code.

    A line never breaks between a number, its percent sign, and the two ends of its interval.
    """
    pattern = r"\d %( \[[\d.]+, [\d.]+\])?"
    unbroken = re.sub(pattern, lambda match: match[0].replace(" ", "\u00a0"), text)
    parts = re.split(r"`([^`]+)`", unbroken)
    code = Markup("<code>{}</code>")
    return Markup().join(code.format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def _interval(text: str) -> Markup:
    """Render a number, with its interval in small print."""
    number, bracket, interval = text.partition(" [")
    small = Markup(" <small>[{}</small>").format(interval) if bracket else ""
    return escape(number) + small


def _embedded(png: bytes) -> tuple[str, int, int]:
    """Return a figure as a data URL, with its width and height in CSS pixels."""
    width, height = struct.unpack(">II", png[16:24])
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return source, round(width / SCALE), round(height / SCALE)


def _drawn(drawing: Drawing, title: str) -> Markup:
    """Render a figure as an SVG element as wide as its file; screen readers read its title."""
    _, width, _ = _embedded(drawing.png)
    head, rest = drawing.svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    named = Markup(' class="figure" style="width: {}px" role="img" aria-label="{}">')
    return Markup(head) + named.format(width, title) + Markup(rest)
