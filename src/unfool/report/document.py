"""The content of a report, before any markup: a title, and blocks below it.

A report is a function of a result that returns a `Document`. `render_terminal`, `render_markdown` and
`render_html` show any document, `write` puts it into a folder. Text is plain, except that words
between backticks are code.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

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


class Drawing(NamedTuple):
    """A figure, drawn.

    Attributes:
        png: The bytes of a PNG file, on white.
        svg: The same as an SVG element in the colors of the page that it stands on; empty for photos.
    """

    png: bytes
    svg: str


@dataclass(frozen=True)
class Figure:
    """A figure. A terminal does not show it.

    Attributes:
        file: Its file, seen from the folder of the report: `figures/accuracy.png`.
        title: What it shows; read out to who cannot see it.
        caption: How to read it.
        drawing: What is drawn.
    """

    file: str
    title: str
    caption: str
    drawing: Drawing


@dataclass(frozen=True)
class SmallImage:
    """An image of few pixels, which a page enlarges without blur.

    Attributes:
        png: The bytes of its file, a pixel each.
        about: What stands below it, such as the model's answer.
        right: Whether that answer is right; None if it is no answer.
    """

    png: bytes
    about: str
    right: bool | None = None


@dataclass(frozen=True)
class ImageGrid(Figure):
    """A figure that a page shows as a table of images instead.

    Attributes:
        heads: The headings of the columns of images.
        rows: Of each row, what stands before it, and its images.
    """

    heads: Sequence[str] = ()
    rows: Sequence[tuple[Sequence[str], Sequence[SmallImage]]] = ()


@dataclass(frozen=True)
class ImageRow:
    """An image in an `ImageTable`.

    Attributes:
        cells: A text for each column.
        values: What each column is sorted by.
        right: Of each column, whether it tells of a right answer; None if it tells of none.
        tags: The filters that let it through, besides that which lets all through.
        images: Its versions by heading, shown on demand.
    """

    cells: Sequence[str]
    values: Sequence[float | str]
    right: Sequence[bool | None]
    tags: Collection[str]
    images: Sequence[tuple[str, SmallImage]] = ()


@dataclass(frozen=True)
class ImageTable:
    """The images of a run, which a page sorts and filters. A terminal does not show them.

    Attributes:
        heads: The headings of the columns.
        rows: The images.
        filters: By title, the tags that a reader chooses from, with what each is called.
        file: The file beside the page that holds all of them.
        of: How many that file holds.
    """

    heads: Sequence[str]
    rows: Sequence[ImageRow]
    filters: Mapping[str, Mapping[str, str]]
    file: str
    of: int


class Tile(NamedTuple):
    """A number that stands out.

    Attributes:
        value: The number.
        title: What it is.
        note: Its interval, or what it rests on.
    """

    value: str
    title: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """The numbers that a reader looks for first. A terminal does not show them."""

    tiles: Sequence[Tile]


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

    found: Sequence[Mapping[str, Any]]
    checked: Sequence[str] = ()
    unchecked: Sequence[str] = ()


Block = (
    Heading | Paragraph | Table | Figure | ImageTable | Tiles | Code | Items | Definitions | Doubts
)


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


EXPLAINED = "https://github.com/unfool/unfool/blob/main/docs/doubts.md"  # a heading for each doubt
NOT_CHECKED = "Not checked yet, because none of the images that these checks use is done:"
