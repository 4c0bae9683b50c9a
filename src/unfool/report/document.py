"""What a report consists of, before any markup: a title, and blocks below it.

A report is a function of a result that returns a `Document`. `render_terminal`, `render_markdown` and
`render_html` show any document, `write` puts it into a folder. Text is plain, except that words
between backticks are code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Style = Literal["strong", "failed"]
Kind = Literal["", "note", "notice", "warning"]


@dataclass(frozen=True)
class Heading:
    """The heading of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Sentences.

    Attributes:
        text: The sentences.
        kind: `"note"` is small print, `"notice"` and `"warning"` stand out.
    """

    text: str
    kind: Kind = ""


@dataclass(frozen=True)
class Table:
    """A table. The columns after the first hold numbers, and stand to the right.

    Attributes:
        heads: The headings of its columns.
        rows: Of each row, a text for each column.
        styles: Of some rows, by their number from 0, how they look.
        marks: Of some rows, by their number from 0, the doubts about them, numbered from 1.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Mapping[int, Style] = field(default_factory=dict)
    marks: Mapping[int, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A figure. A terminal does not show it.

    Attributes:
        file: Its file, seen from the folder of the report: `figures/accuracy.png`.
        title: What it shows; read out to who cannot see it.
        caption: How to read it.
        png: The bytes of its file.
    """

    file: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Picture:
    """A picture of few pixels, which a page enlarges without blur.

    Attributes:
        png: The bytes of its file, a pixel each.
        about: What stands below it, such as the model's answer.
        right: Whether that answer is right; None if it is no answer.
    """

    png: bytes
    about: str
    right: bool | None = None


@dataclass(frozen=True)
class Pictures(Figure):
    """A figure that a page shows as a table of pictures instead.

    Attributes:
        heads: The headings of the columns of pictures.
        rows: Of each row, what stands before it, and its pictures.
    """

    heads: Sequence[str] = ()
    rows: Sequence[tuple[Sequence[str], Sequence[Picture]]] = ()


@dataclass(frozen=True)
class Code:
    """A listing. A terminal does not show it.

    Attributes:
        text: The listing.
        language: What it is written in; empty for a command.
    """

    text: str
    language: str = ""


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Definitions:
    """Terms, and what each is."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Doubts:
    """The doubts about a result, in the order of their numbers.

    Attributes:
        found: `severity`, `name` and `why` of each.
        checked: What was checked; told where no doubt was raised.
        unchecked: What could not be checked yet.
    """

    found: Sequence[Mapping[str, str]]
    checked: Sequence[str] = ()
    unchecked: Sequence[str] = ()


Block = Heading | Paragraph | Table | Figure | Code | Items | Definitions | Doubts


@dataclass(frozen=True)
class Document:
    """A report, or the short form of one.

    Attributes:
        title: The result in one sentence, or what the report is about.
        blocks: What stands below it.
        overline: What was measured, by name; above the title.
    """

    title: str
    blocks: Sequence[Block]
    overline: str = ""

    @property
    def figures(self) -> list[Figure]:
        """The figures in it."""
        return [block for block in self.blocks if isinstance(block, Figure)]


NOT_CHECKED = "Not checked, as no picture of those the model itself is examined on is done yet:"
