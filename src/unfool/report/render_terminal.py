"""Render a document for the terminal, and as plain text."""

import io
import shutil
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unfool.report import document as doc

WIDTH = 110  # characters, if there is no terminal
UNBROKEN = 10_000
STYLES = {
    "strong": "bold",
    "failed": "bold red",
    "notice": "bold",
    "warning": "bold",
    "note": "dim",
}
SEVERITY = {"red": "bold red", "yellow": "yellow"}


def print_document(
    document: doc.Document, console: Console | None = None, page: Path | None = None
) -> None:
    """Print a document, without its figures and listings.

    Args:
        document: The document.
        console: The console to print to; by default the standard output, where a pipe or a file gets
            every sentence and table row on one line.
        page: The file with the full report, whose path is printed at the end.
    """
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else UNBROKEN)
    if document.title:
        console.print(Text(document.title, style="bold"))
    for block in document.blocks:
        if isinstance(block, doc.Table):
            console.print(_table(block, console))
        for line in _lines(block):
            console.print(line)
    if page is not None:
        console.print(Text(f"report: {page}"), soft_wrap=True)


def plain_text(document: doc.Document) -> str:
    """Return what `print_document` prints, without colors."""
    width = shutil.get_terminal_size((WIDTH, 24)).columns
    console = Console(file=io.StringIO(), width=width, highlight=False, color_system=None)
    print_document(document, console)
    printed: Any = console.file
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines()).strip("\n")


def _lines(block: object) -> list[Text]:
    """Return the lines of a block; none for tables and for blocks that a terminal does not show."""
    match block:
        case doc.Heading(text):
            return [Text(""), Text(text, "bold")]
        case doc.Paragraph(text, kind):
            return [Text(text, STYLES.get(kind, ""))]
        case doc.Items(texts):
            return [Text(f"- {text}") for text in texts]
        case doc.Definitions(pairs):
            return [Text(f"  {term}: {about}", "dim") for term, about in pairs]
        case doc.Doubts(entries):
            numbered = [
                Text(f"[{n}] {doubt['severity']} doubt ", SEVERITY.get(doubt["severity"], ""))
                + Text(f"{doubt['name']}: {doubt['why']}", "default")
                for n, doubt in enumerate(entries, 1)
            ]
            return [Text(""), *(numbered or [Text("No doubts were raised.")])]
    return []


def _table(table: doc.Table, console: Console) -> Table:
    """Render a table; if it is too wide, put intervals below their numbers."""
    wide = _grid(table, " [")
    roomy = console.options.update(width=UNBROKEN)
    fits = console.measure(wide, options=roomy).maximum <= console.width
    return wide if fits else _grid(table, "\n[")


def _grid(table: doc.Table, before_interval: str) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, head in enumerate(table.heads):
        grid.add_column(head, justify="right" if i else "left", overflow="fold")
    for number, (first, *others) in enumerate(table.rows):
        style = STYLES.get(table.styles.get(number, ""), "")
        marks = "".join(f" [{mark}]" for mark in table.marks.get(number, ()))
        texts = [Text(text.replace(" [", before_interval), style) for text in others]
        grid.add_row(Text(first, style) + Text(marks, "bold red"), *texts)
    return grid
