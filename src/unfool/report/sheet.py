"""A sheet: an HTML page with a row for each image, enlarged, before and after a change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unfool.report.document import Code, Document, Drawing, ImageGrid, Paragraph, SmallImage
from unfool.report.figures.examples import SIGNS, image_file, magnify
from unfool.report.render_html import to_html
from unfool.runtime.files import write_bytes

MAX_IMAGES = 24  # images on a sheet


@dataclass(frozen=True)
class SheetRow:
    """The row of an image: its versions, and the change.

    Attributes:
        about: The lines before the images: the name, and the true class if known.
        versions: Title of each step to the image (C, H, W) in [0, 1].
        difference: The change of the pixel values (C, H, W); the sheet magnifies it.
        answers: Title of a version to the class that the model answered.
        truth: The true class of the image, if known.
        size: The size of the difference, in words.
    """

    about: Sequence[str]
    versions: Mapping[str, np.ndarray]
    difference: np.ndarray
    answers: Mapping[str, str] = field(default_factory=dict)
    truth: str | None = None
    size: str = ""


def write_sheet(
    path: Path, rows: Sequence[SheetRow], title: str, caption: str, command: str
) -> Path:
    """Write a sheet of the first images.

    Args:
        path: The HTML file.
        rows: The rows in order; those after the first `MAX_IMAGES` are left out.
        title: What was done to the images.
        caption: How to read the sheet.
        command: The command to make it again.

    Raises:
        OSError: The file cannot be written.
    """
    shown = rows[:MAX_IMAGES]
    factor = magnify(max(float(np.abs(row.difference).max()) for row in shown))
    titles = list(dict.fromkeys(title for row in shown for title in row.versions))
    heads = [*titles, f"difference \u00d7 {factor:g}"]
    lines = [(row.about, [*_versions(row, titles), _difference(row, factor)]) for row in shown]
    grid = ImageGrid("", title, caption, Drawing(b"", ""), heads, lines)
    more = f" The other {len(rows) - MAX_IMAGES} are not shown." if len(rows) > MAX_IMAGES else ""
    count = f"{len(rows)} image{'' if len(rows) == 1 else 's'}.{more}"
    document = Document(title, [Paragraph(count), grid, Code(command)] if command else [grid])
    write_bytes(path, to_html(document).encode())
    return path


def _versions(row: SheetRow, titles: Sequence[str]) -> list[SmallImage]:
    images = []
    for title in titles:
        if title not in row.versions:
            images.append(SmallImage(image_file(np.ones((1, 1, 1))), "none"))
            continue
        answer = row.answers.get(title, "")
        right = None if not answer or row.truth is None else answer == row.truth
        text = answer if right is None else f"{SIGNS[right]} {answer}"
        images.append(SmallImage(image_file(row.versions[title]), text, right))
    return images


def _difference(row: SheetRow, factor: float) -> SmallImage:
    return SmallImage(image_file(0.5 + factor * row.difference), row.size)
