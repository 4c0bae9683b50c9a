"""Results as plain text, and as a piece of HTML for a notebook."""

import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from rich.console import Console

from unfool.report import sentences
from unfool.report.rows import cell, columns, doubts, rows

Grid = tuple[Sequence[str], Sequence[Sequence[str]]]
WIDTH = 110  # characters, where there is no terminal


def plain_text(show: Callable[[Console], None]) -> str:
    """What `show` prints to a console, as plain text without colors."""
    width = shutil.get_terminal_size((WIDTH, 24)).columns
    console = Console(file=io.StringIO(), width=width, highlight=False, color_system=None)
    show(console)
    printed: Any = console.file
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines()).strip("\n")


def summary_html(summary: Mapping[str, Any]) -> str:
    """What a run says, as a piece of HTML."""
    heads = columns(summary)
    body = [
        [line.title, *(cell(line.shares[head.key]) for head in heads)] for line in rows(summary)
    ]
    notes = filter(None, (sentences.unfinished(summary), sentences.warning(summary)))
    said = [
        f"{doubt['severity']} doubt: {doubt['name']}: {doubt['why']}" for doubt in doubts(summary)
    ]
    grid = (["condition", *(head.title for head in heads)], body)
    opening = [*notes, sentences.basis(summary)]
    return fragment(sentences.headline(summary), opening, [grid], said or ["no doubts were raised"])


def fragment(
    title: str, opening: Sequence[str], grids: Sequence[Grid], closing: Sequence[str] = ()
) -> str:
    """A title, sentences, tables and a list, as a piece of HTML."""
    parts = [f"<p><b>{escape(title)}</b></p>", *(f"<p>{escape(text)}</p>" for text in opening)]
    parts += [table(*grid) for grid in grids]
    if closing:
        parts.append(f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in closing)}</ul>")
    return "\n".join(parts)


def table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in HTML."""
    first = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = ["".join(f"<td>{escape(text)}</td>" for text in row) for row in body]
    return (
        f"<table><thead><tr>{first}</tr></thead>"
        f"<tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
    )
