"""A short report as one page of HTML: paragraphs, tables and figures, nothing beside it."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from unfool.runtime.files import write_bytes

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem; color: #1c1c1c; background: #fff;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.3; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid #d9d9d4; white-space: pre; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 1px solid #1c1c1c; font-weight: 600; }
img { display: block; max-width: 100%; height: auto; margin: 1.5rem 0 .5rem; }
figcaption, .soft { color: #5c5c58; font-size: .875rem; }
figure { margin: 1.5rem 0; }
pre { background: #f3f3ef; padding: .9rem 1rem; overflow-x: auto; font-size: .8125rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for part in parts %}
{% if part.rows %}
<div class="wide"><table>
<thead><tr>{% for head in part.heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in part.rows %}
<tr>{% for text in row %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% elif part.picture %}
<figure><img src="{{ part.picture }}" alt="{{ part.text }}">
<figcaption>{{ part.text }}</figcaption></figure>
{% elif part.code %}
<pre>{{ part.text }}</pre>
{% else %}
<p>{{ part.text }}</p>
{% endif %}
{% endfor %}
</body>
</html>
"""


@dataclass(frozen=True)
class Part:
    """A paragraph, a figure, a table or a listing of a page.

    Attributes:
        text: The paragraph, the figure's caption, or the listing.
        png: The figure, as the bytes of a PNG file.
        heads: The table's headings.
        rows: Its rows.
        code: Whether the text is a listing.
    """

    text: str = ""
    png: bytes = b""
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    code: bool = False

    @property
    def picture(self) -> str:
        """The figure as a data URL; empty if there is none."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}" if self.png else ""


def sheet(title: str, parts: Sequence[Part]) -> str:
    """The page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_PAGE).render(title=title, parts=parts)


def write_sheet(
    folder: Path,
    name: str,
    title: str,
    parts: Sequence[str],
    page: Sequence[Part],
    about: Mapping[str, Any],
    summary: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write `NAME.{npz,md,html,json}` of an analysis into `folder`.

    Args:
        folder: Where to.
        name: What the files are called.
        title: Of the page.
        parts: The text in Markdown, without the command.
        page: The page.
        about: `command`, and what else is written beside the numbers.
        summary: The numbers.
        arrays: What is behind the figures.
    """
    kept = io.BytesIO()
    np.savez_compressed(kept, **arrays)  # pyright: ignore[reportArgumentType]
    text = "\n\n".join([*parts, f"Made by `{about['command']}`"])
    write_bytes(folder / f"{name}.npz", kept.getvalue())
    write_bytes(folder / f"{name}.md", (text + "\n").encode())
    write_bytes(folder / f"{name}.html", sheet(title, page).encode())
    told = {"version": 1, **about, **summary}
    write_bytes(folder / f"{name}.json", (json.dumps(told, indent=1) + "\n").encode())
