"""Render a document as Markdown, for a code review, a wiki, or a terminal."""

import html
import re
from collections.abc import Sequence

from unfool.report import document as doc


def to_markdown(document: doc.Document) -> str:
    """Render a document as Markdown that links to the files of its figures."""
    parts = [f"# {_text(document.title)}", _text(document.overline)]
    return "\n\n".join(filter(None, [*parts, *map(_block, document.blocks)])) + "\n"


def quote(text: str) -> str:
    """Escape text, so that Markdown shows it literally on one line."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", plain)


def _text(text: str) -> str:
    """Escape sentences, but keep words between backticks as code."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(part if i % 2 else quote(f".{part}.")[1:-1] for i, part in enumerate(parts))


def _block(block: doc.Block) -> str:
    match block:
        case doc.Heading(text):
            return f"## {_text(text)}"
        case doc.Paragraph(text, kind):
            stands_out = kind in ("notice", "warning")
            return f"> **{_text(text)}**" if stands_out else _text(text)
        case doc.Table():
            return _table(block)
        case doc.Figure(file, title, caption):
            return f"![{quote(title)}]({file})\n\n*{quote(title)}.* {_text(caption)}"
        case doc.Code(text, ""):
            return f"Made by `{text}`"
        case doc.Code(text, language):
            return f"```{language}\n{text.rstrip()}\n```"
        case doc.ImageTable(file=file):
            return f"The result of each image: [{file}.csv]({file}.csv), [{file}.json]({file}.json)"
        case doc.Tiles(tiles):
            return "\n".join(f"- **{tile.value}** {tile.title} ({tile.note})" for tile in tiles)
        case doc.Items(texts):
            return _list(texts)
        case doc.Definitions(pairs):
            return "\n".join(f"- **{quote(term)}**: {_text(about)}" for term, about in pairs)
        case doc.Doubts():
            return _doubts(block)


def _table(table: doc.Table) -> str:
    """Render a table; all columns after the first are aligned to the right."""
    marks = {row: "".join(f" [{n}]" for n in table.marks[row]) for row in table.marks}
    body = [[row[0] + marks.get(i, ""), *row[1:]] for i, row in enumerate(table.rows)]
    lines = [[quote(text) for text in row] for row in (table.heads, *body)]
    lines.insert(1, ["---", *["---:"] * (len(table.heads) - 1)])
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _doubts(doubts: doc.Doubts) -> str:
    parts = ["## Doubts"]
    numbered = [
        f"{number}. **{doubt['severity']}: {quote(doubt['name'])}**: {_text(doubt['why'])} "
        f"([explained]({doc.DOUBTS_URL}#{doubt['name'].partition(' ')[0]}))"
        for number, doubt in enumerate(doubts.entries, 1)
    ]
    if numbered:
        parts.append("\n".join(numbered))
    else:
        parts.append("No doubts were raised." + " Checked:" * bool(doubts.checked))
        parts.append(_list(doubts.checked))
    if doubts.unchecked:
        parts += [doc.NOT_CHECKED, _list(doubts.unchecked)]
    return "\n\n".join(filter(None, parts))


def _list(texts: Sequence[str]) -> str:
    return "\n".join(f"- {_text(text)}" for text in texts)
