"""The content of a report, before any markup: a title, and blocks below it.

A report is a function from a result to a `Document`. `render_terminal`, `render_markdown`, and
`render_html` show any document, and `write` writes it into a folder. Text is plain, except that words
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
        kind: `"note"` is small print; `"notice"` and `"warning"` stand out.
    """

    text: str
    kind: Kind = ""


@dataclass(frozen=True)
class Table:
    """A table. The columns after the first hold numbers and are aligned to the right.

    Attributes:
        heads: The headings of the columns.
        rows: For each row, a text for each column.
        styles: Row number, from 0, to the style of that row.
        marks: Row number, from 0, to the numbers of the doubts about that row, from 1.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Mapping[int, Style] = field(default_factory=dict)
    marks: Mapping[int, Sequence[int]] = field(default_factory=dict)


class Drawing(NamedTuple):
    """A rendered figure.

    Attributes:
        png: The bytes of a PNG file on a white background.
        svg: The figure as an SVG element in the colors of the page; empty for photos.
    """

    png: bytes
    svg: str


@dataclass(frozen=True)
class Figure:
    """A figure. A terminal does not show it.

    Attributes:
        file: The path of its file, relative to the report's folder: `figures/accuracy.png`.
        title: What it shows; screen readers read this.
        caption: How to read it.
        drawing: The rendered figure.
    """

    file: str
    title: str
    caption: str
    drawing: Drawing


@dataclass(frozen=True)
class SmallImage:
    """An image of few pixels, which a page enlarges without blur.

    Attributes:
        png: The bytes of its PNG file, not enlarged.
        about: The text below it, such as the model's answer.
        right: Whether that answer is right; None if the text is not an answer.
    """

    png: bytes
    about: str
    right: bool | None = None


@dataclass(frozen=True)
class ImageGrid(Figure):
    """A figure that a page shows as a table of images instead.

    Attributes:
        heads: The headings of the columns of images.
        rows: For each row, the lines of text before it, and its images.
    """

    heads: Sequence[str] = ()
    rows: Sequence[tuple[Sequence[str], Sequence[SmallImage]]] = ()


@dataclass(frozen=True)
class ImageRow:
    """The row of an image in an `ImageTable`.

    Attributes:
        cells: A text for each column.
        values: The sort key of each column.
        right: For each column, whether it shows a right answer; None if it shows no answer.
        tags: The filters that show this row, besides the one that shows all rows.
        images: The versions of the image with their headings, shown on demand.
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
        filters: Title of a filter to its choices: tag to label.
        file: The name of the file beside the page that holds all images.
        total: The number of images in that file.
    """

    heads: Sequence[str]
    rows: Sequence[ImageRow]
    filters: Mapping[str, Mapping[str, str]]
    file: str
    total: int


class Tile(NamedTuple):
    """A number that stands out.

    Attributes:
        value: The number.
        title: What the number is.
        note: Its interval, or its basis.
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
        language: Its language; empty for a command.
    """

    text: str
    language: str = ""


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Definitions:
    """Terms and their meanings."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Doubts:
    """The doubts about a result, in the order of their numbers.

    Attributes:
        entries: `severity`, `name`, and `why` of each doubt.
        checked: What was checked; shown if no doubt was raised.
        unchecked: What could not be checked yet.
    """

    entries: Sequence[Mapping[str, Any]]
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
        blocks: The content below the title.
        overline: The name of what was measured, above the title.
    """

    title: str
    blocks: Sequence[Block]
    overline: str = ""

    @property
    def figures(self) -> list[Figure]:
        """The figures of the document."""
        return [block for block in self.blocks if isinstance(block, Figure)]


DOUBTS_URL = "https://github.com/unfool/unfool/blob/main/docs/doubts.md"  # a heading for each doubt
NOT_CHECKED = "Not checked yet, because none of the images that these checks use is done:"
