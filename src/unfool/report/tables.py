"""Tables: in Markdown, and for the terminal."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unfool.report import sentences
from unfool.report.rows import (
    cell,
    columns,
    costs,
    doubts,
    knowing,
    ladder,
    quality,
    resubmission,
    rows,
    weakest,
)

SEVERITY = {"red": "bold red", "yellow": "yellow"}


def print_summary(
    summary: Mapping[str, Any], folder: Path | None = None, console: Console | None = None
) -> None:
    """Print what a run says, its doubts, and where the report is.

    Args:
        summary: What `write_report` or `summarize_run` returned.
        folder: The folder of the report; None if there is none.
        console: Where to; the standard output by default.
    """
    console = console or Console(highlight=False)
    for line in filter(None, (sentences.unfinished(summary), sentences.warning(summary))):
        console.print(Text(line, style="bold"))
    console.print(Text(sentences.headline(summary), style="bold"))
    console.print(Text(sentences.basis(summary)))
    console.print(_grid(summary, narrow=console.width < 108))
    for column in columns(summary):
        console.print(Text(f"  {column.title}: {column.meaning}", style="dim"))
    if about := sentences.about_robust(summary):
        console.print(Text(f"  {about}", style="dim"))
    for name, known, right, gap in knowing(summary)[1]:
        below = "" if gap == "-" else f"; below that with none known: {gap}"
        console.print(Text(f"  {name}: {right}, as {known}{below}"), soft_wrap=False)
    console.print()
    for number, doubt in enumerate(doubts(summary), 1):
        mark = Text(f"[{number}] {doubt['severity']} doubt ", SEVERITY.get(doubt["severity"], ""))
        console.print(mark + Text(f"{doubt['name']}: {doubt['why']}", style="default"))
    if not summary["doubts"]:
        console.print(Text("no doubts were raised"))
    if folder is not None:
        console.print(Text(f"report: {folder / 'report.html'}"), soft_wrap=True)


def accuracy_table(summary: Mapping[str, Any]) -> str:
    """Accuracy under every condition, in Markdown."""
    heads = columns(summary)
    body = [
        [line.title + _marks(line.marks), *(cell(line.shares[head.key]) for head in heads)]
        for line in rows(summary)
    ]
    return markdown(["condition", *(head.title for head in heads)], body)


def class_table(summary: Mapping[str, Any]) -> str:
    """Accuracy of each class, in Markdown."""
    keys = ["clean", "robust"] if summary["attacks"] else ["clean"]
    body = [
        [row["name"], str(row["n"]), *(cell(row[key]) for key in keys)] for row in weakest(summary)
    ]
    return markdown(["class", "pictures", *keys], body)


def quality_table(summary: Mapping[str, Any]) -> str:
    """How far pictures are from the clean ones, in Markdown; nothing if it was not measured."""
    heads, body = quality(summary)
    return markdown(heads, body) if body else ""


def ladder_table(summary: Mapping[str, Any]) -> str:
    """What the attacker has after each attack, in Markdown; nothing of one attack."""
    heads, body = ladder(summary)
    return markdown(heads, body) if body else ""


def knowing_table(summary: Mapping[str, Any]) -> str:
    """Accuracy with some of the noise known, in Markdown; nothing if none was."""
    heads, body = knowing(summary)
    return markdown(heads, body) if body else ""


def resubmission_table(summary: Mapping[str, Any]) -> str:
    """How often all of several answers are right, in Markdown; nothing if the first says it all."""
    heads, body = resubmission(summary)
    return markdown(heads, body) if body else ""


def cost_table(summary: Mapping[str, Any]) -> str:
    """What the evaluation cost, in Markdown."""
    return markdown(["cost", "in all", "per picture"], [list(row) for row in costs(summary)])


def markdown(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the columns after the first stand to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    quoted = [[quote(text) for text in row] for row in body]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*lines, *quoted])


def quote(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", plain)


def grid(heads: Sequence[str], body: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal; the columns after the first stand to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", overflow="fold")
    for row in body:
        table.add_row(*map(Text, row))
    return table


def _grid(summary: Mapping[str, Any], narrow: bool) -> Table:
    """The table for the terminal; on a narrow one an interval stands below its number."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("condition", overflow="fold")
    for column in columns(summary):
        table.add_column(column.title, justify="right", overflow="fold")
    for line in rows(summary):
        style = "bold" if line.name == "robust" else ""
        texts = [cell(line.shares[column.key]) for column in columns(summary)]
        if narrow:
            texts = [text.replace(" [", "\n[") for text in texts]
        first = Text(line.title, style) + Text(_marks(line.marks), "bold red")
        table.add_row(first, *(Text(text, style) for text in texts))
    return table


def _marks(numbers: Sequence[int]) -> str:
    return "".join(f" [{number}]" for number in numbers)
