"""A sheet: a page of HTML with a row for each image, enlarged, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unfool.report.document import Code, Document, Drawing, ImageGrid, Paragraph, SmallImage
from unfool.report.figures.examples import SIGNS, image_file, magnify
from unfool.report.render_html import to_html
from unfool.runtime.files import write_bytes

MOST = 24  # images on a sheet


@dataclass(frozen=True)
class SheetRow:
    """An image, and what became of it.

    Attributes:
        about: What stands before it: its name, and its class if that is known.
        versions: The image (C, H, W) in [0, 1] at each step, by title.
        difference: What was changed, of the values of the image; it is magnified.
        answers: The class that is answered to some versions, by their title.
        truth: The class of the image, if it is known.
        size: Of the difference, in words.
    """

    about: Sequence[str]
    versions: Mapping[str, np.ndarray]
    difference: np.ndarray
    answers: Mapping[str, str] = field(default_factory=dict)
    truth: str | None = None
    size: str = ""


def write_sheet(path: Path, rows: Sequence[SheetRow], title: str, said: str, command: str) -> Path:
    """Write a sheet of the first images.

    Args:
        path: The file of HTML.
        rows: The images, in order; those after the first `MOST` are left out.
        title: What happened to them.
        said: How to read it.
        command: How to make it again.

    Raises:
        OSError: The file cannot be written.
    """
    shown = rows[:MOST]
    factor = magnify(max(float(np.abs(row.difference).max()) for row in shown))
    titles = list(dict.fromkeys(title for row in shown for title in row.versions))
    heads = [*titles, f"difference \u00d7 {factor:g}"]
    lines = [(row.about, [*_versions(row, titles), _difference(row, factor)]) for row in shown]
    grid = ImageGrid("", title, said, Drawing(b"", ""), heads, lines)
    more = f" The other {len(rows) - MOST} are not shown." if len(rows) > MOST else ""
    count = f"{len(rows)} image{'' if len(rows) == 1 else 's'}.{more}"
    document = Document(title, [Paragraph(count), grid, Code(command)] if command else [grid])
    write_bytes(path, to_html(document).encode())
    return path


def _versions(row: SheetRow, titles: Sequence[str]) -> list[SmallImage]:
    found = []
    for title in titles:
        if title not in row.versions:
            found.append(SmallImage(image_file(np.ones((1, 1, 1))), "none"))
            continue
        answer = row.answers.get(title, "")
        right = None if not answer or row.truth is None else answer == row.truth
        said = answer if right is None else f"{SIGNS[right]} {answer}"
        found.append(SmallImage(image_file(row.versions[title]), said, right))
    return found


def _difference(row: SheetRow, factor: float) -> SmallImage:
    return SmallImage(image_file(0.5 + factor * row.difference), row.size)
